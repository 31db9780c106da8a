#include "solver.hpp"

#include <algorithm>
#include <cmath>

namespace pyscaling {

namespace {

// Solves (H + damping M) step = -g, M the majorizer or else diag(scale), for the free parameters, the steps of the others
// given. False if not positive definite.
bool damped_step(const Evaluation& at, const std::vector<char>& free, double damping, std::vector<double>& factor,
                 std::vector<double>& step) {
    const int P = static_cast<int>(step.size());
    const bool majorized = !at.majorizer.empty();
    std::vector<double>& rhs = factor;  // the last P entries
    const int tail = P * P;
    for (int i = 0; i < P; ++i) {
        rhs[tail + i] = free[i] ? -at.gradient[i] : step[i];
        for (int j = 0; j < P && free[i]; ++j)
            if (!free[j]) rhs[tail + i] -= at.curvature[i > j ? i * (i + 1) / 2 + j : j * (j + 1) / 2 + i] * step[j];
    }
    for (int i = 0, k = 0; i < P; ++i) {
        for (int j = 0; j <= i; ++j, ++k) {
            double sum = 0.0;
            if (i == j) {
                // The little more on the diagonal is for a majorizer that is singular itself.
                const double pivot = at.curvature[k] + damping * at.scale[i] * (majorized ? 1 + 1e-6 : 1);
                sum = free[i] ? pivot : 1.0;
            } else if (free[i] && free[j]) {
                sum = at.curvature[k] + (majorized ? damping * at.majorizer[k] : 0.0);
            }
            const double original = sum;
            for (int m = 0; m < j; ++m) sum -= factor[i * P + m] * factor[j * P + m];
            if (i == j) {
                if (!(sum > 1e-14 * std::abs(original)) || !(sum > 0.0)) return false;
                factor[i * P + i] = std::sqrt(sum);
            } else {
                factor[i * P + j] = sum / factor[j * P + j];
            }
        }
    }
    for (int i = 0; i < P; ++i) {
        double sum = rhs[tail + i];
        for (int m = 0; m < i; ++m) sum -= factor[i * P + m] * step[m];
        step[i] = sum / factor[i * P + i];
    }
    for (int i = P - 1; i >= 0; --i) {
        double sum = step[i];
        for (int m = i + 1; m < P; ++m) sum -= factor[m * P + i] * step[m];
        step[i] = sum / factor[i * P + i];
    }
    return true;
}

double predicted_decrease(const Evaluation& at, const std::vector<double>& step) {
    const int P = static_cast<int>(step.size());
    double linear = 0.0, quadratic = 0.0;
    for (int i = 0, k = 0; i < P; ++i) {
        linear += at.gradient[i] * step[i];
        for (int j = 0; j <= i; ++j, ++k) quadratic += (i == j ? 0.5 : 1.0) * at.curvature[k] * step[i] * step[j];
    }
    return -(linear + quadratic);
}

constexpr double kLeastShare = 1e-3;  // of the loss, for a term whose coefficient would be negative
constexpr double kGrowth = 8.0;  // of the damping at a first refusal; it doubles with each one that follows

// A minimiser's state, carried from stage to stage.
struct Descent {
    const Problem& problem;
    Workspace& ws;
    std::vector<double> theta, trial, beyond, step, factor;
    std::vector<char> free, within;
    Evaluation at, next, last;
    double damping = kFarDamping, growth = kGrowth;
    bool clipped = false;
    int iterations = 0;

    Descent(const Problem& p, const double* start, Workspace& w, bool majorize = false)
        : problem(p), ws(w), theta(start, start + p.tape->n_parameter), trial(theta), beyond(theta), step(theta),
          factor(theta.size() * (theta.size() + 1)), free(theta.size()), at(p.tape->n_parameter, majorize),
          next(p.tape->n_parameter, majorize), last(p.tape->n_parameter, majorize) {
        for (std::size_t j = 0; j < theta.size(); ++j) theta[j] = std::clamp(theta[j], p.lower[j], p.upper[j]);
    }

    void measure(const std::vector<double>& where, double delta, int level, Evaluation& out) {
        evaluate(*problem.tape, *problem.points, problem.y, problem.weights, where.data(), delta, problem.over, level, ws, out);
    }

    void find_free() {
        for (std::size_t j = 0; j < theta.size(); ++j) {
            const bool held = problem.lower[j] == problem.upper[j] || (theta[j] <= problem.lower[j] && at.gradient[j] > 0) ||
                              (theta[j] >= problem.upper[j] && at.gradient[j] < 0) || !(at.scale[j] > 0);
            free[j] = !held;
        }
    }

    // The damped step within a box: a parameter that would leave it is held at its edge and the others solved again, the
    // farthest first. The box ends at the bounds, and at what a quadratic can know of exponentials: a term that leaps out
    // of sight never returns. Sets `clipped`; false if the matrix is not positive definite.
    bool box_step() {
        within = free;
        std::fill(step.begin(), step.end(), 0.0);
        clipped = false;
        for (;;) {
            if (!damped_step(at, within, damping, factor, step)) return false;
            double worst = 1.0 + 1e-12, edge = 0.0;
            std::size_t out = theta.size();
            for (std::size_t j = 0; j < theta.size(); ++j) {
                if (!within[j]) continue;
                const double reach = 0.5 + 0.5 * std::abs(theta[j]);
                const double room = std::min(reach, step[j] > 0 ? problem.upper[j] - theta[j] : theta[j] - problem.lower[j]);
                if (std::abs(step[j]) <= worst * room) continue;
                worst = std::abs(step[j]) / std::max(room, 1e-300);
                out = j;
                edge = std::copysign(room, step[j]);
            }
            if (out == theta.size()) return true;
            clipped = true;
            within[out] = 0;
            step[out] = edge;  // damped_step leaves the steps of those that are held as they are
        }
    }

    void add_step(std::vector<double>& to) const {
        for (std::size_t j = 0; j < theta.size(); ++j) to[j] = std::clamp(theta[j] + step[j], problem.lower[j], problem.upper[j]);
    }

    double scaled_gradient() const {
        double worst = 0.0;
        for (std::size_t j = 0; j < theta.size(); ++j)
            if (free[j]) worst = std::max(worst, std::abs(at.gradient[j]) / std::sqrt(at.scale[j] * std::max(at.value, 1e-300)));
        return worst;
    }

    // Median size of the residuals at theta: what most points show, whatever a few do.
    double median_residual() {
        const int n = problem.points->n;
        std::vector<double> size(n);
        set_parameters(*problem.tape, theta.data(), ws);
        for (int first = 0; first < n; first += kBlock) {
            const int count = std::min(kBlock, n - first);
            run_level(*problem.tape, *problem.points, first, count, 0, ws);
            const double* law = slot(*problem.tape, *problem.points, first, ws, problem.tape->value);
            for (int p = 0; p < count; ++p) {
                const double r = std::abs((problem.tape->log_link ? std::log(law[p]) : law[p]) - problem.y[first + p]);
                size[first + p] = std::isfinite(r) ? r : INFINITY;
            }
        }
        std::nth_element(size.begin(), size.begin() + n / 2, size.end());
        return size[n / 2];
    }

    // A step along a curved valley climbs its wall, though a second one from there may end lower than both began (the
    // watchdog of Chamberlain et al. 1982). Replaces `trial` and `next` if it does.
    void second_step(double delta, int level) {
        std::swap(theta, trial);
        std::swap(at, next);
        find_free();
        if (box_step()) {
            add_step(beyond);
            ++iterations;
            measure(beyond, delta, level, last);
            if (last.value < next.value) {
                std::swap(theta, beyond);
                std::swap(at, last);
            }
        }
        std::swap(theta, trial);
        std::swap(at, next);
    }

    // Minimises at one delta until the predicted decrease falls below `tolerance` times the value.
    Status descend(double delta, int level, double tolerance, int limit) {
        if (problem.stop && *problem.stop) return Status::iterations;  // before a table of millions is read once more
        measure(theta, delta, level, at);
        if (!std::isfinite(at.value)) return Status::not_finite;
        for (int i = 0; i < limit; ++i) {
            if (problem.stop && *problem.stop) return Status::iterations;
            find_free();
            if (at.value == 0.0) return Status::converged;
            bool solved = false;
            while (!(solved = box_step()) && damping < 1e12) damping = std::max(10 * damping, 1e-10);
            if (!solved) return Status::stalled;
            add_step(trial);
            const double predicted = predicted_decrease(at, step);
            ++iterations;
            if (!clipped && damping <= 1e-6 && predicted <= tolerance * at.value) return Status::converged;
            measure(trial, delta, level, next);
            if (growth == kGrowth && std::isfinite(next.value) && next.value >= at.value) second_step(delta, level);
            const double actual = at.value - next.value;
            if (std::isfinite(next.value) && actual > 0) {
                const double ratio = predicted > 0 ? actual / predicted : 0.0;
                std::swap(theta, trial);
                std::swap(at, next);
                // After a refusal the damping is about right, and falls with care.
                if (ratio > 0.75) damping = damping > 1e-13 ? damping / (growth > kGrowth ? 2 : 10) : 0.0;
                else if (ratio < 0.25) damping = std::max(4 * damping, 1e-10);
                growth = kGrowth;
            } else {
                // No decrease at rounding level: the step is as good as none.
                if (damping > 1e10 || (predicted >= 0 && predicted <= 1e-15 * at.value)) {
                    find_free();
                    return scaled_gradient() < 1e-5 ? Status::converged : Status::stalled;
                }
                damping = std::max(growth * damping, 1e-8);
                growth *= 2.0;
            }
        }
        return Status::iterations;
    }
};

}  // namespace

Relative::Relative(const Problem& of) : tape(*of.tape), y(of.y, of.y + of.points->n), weights(of.weights, of.weights + of.points->n), problem(of) {
    if (tape.log_link) {
        for (std::size_t p = 0; p < y.size(); ++p) {
            y[p] = std::exp(y[p]);
            weights[p] /= y[p] * y[p];
        }
        tape.log_link = false;
    }
    problem.tape = &tape;
    problem.y = y.data();
    problem.weights = weights.data();
    problem.delta = INFINITY;
    problem.over = 1.0;  // a linear problem
}

bool project(const Problem& relative, double* theta, Workspace& ws) {
    const int P = relative.tape->n_parameter;
    const auto& dependence = relative.tape->dependence;
    Descent descent(relative, theta, ws);
    std::vector<double>&at = descent.theta, &step = descent.step, &scale = descent.at.scale;
    const auto measure = [&] {
        descent.measure(at, INFINITY, 1, descent.at);
        return std::isfinite(descent.at.value);
    };
    int count = 0;
    for (int j = 0; j < P; ++j) {
        descent.free[j] = dependence[j] != Dependence::other && relative.lower[j] < relative.upper[j];
        count += descent.free[j];
        step[j] = 0.0;
    }
    if (!count || !measure()) return false;
    double size = 0.0;
    for (int p = 0; p < relative.points->n; ++p) size += relative.weights[p] * relative.y[p] * relative.y[p];
    const auto share = [&](int j) { return std::sqrt(size / scale[j]); };  // the coefficient at which a term is as large as y
    const auto coefficient = [&](int j) { return dependence[j] == Dependence::linear ? at[j] : 1.0; };
    const auto set = [&](int j, double value) {
        at[j] = dependence[j] == Dependence::linear ? value : at[j] + std::log(value);
        at[j] = std::clamp(at[j], relative.lower[j], relative.upper[j]);
    };
    // Equal terms to begin with: far from them a coefficient's digits are lost.
    for (int j = 0; j < P; ++j) {
        if (!descent.free[j]) continue;
        if (!(scale[j] > 0)) return false;
        set(j, share(j) / count);
    }
    if (!measure()) return false;
    // A coefficient that would be negative is held where its term is a small share of the loss, and the others solved again.
    const auto least = [&](int j) { return kLeastShare * share(j) + (dependence[j] == Dependence::linear ? relative.lower[j] : 0.0); };
    for (bool again = true; again;) {
        again = false;
        if (!damped_step(descent.at, descent.free, kNearDamping, descent.factor, step)) return false;
        for (int j = 0; j < P; ++j) {
            if (!descent.free[j] || !(coefficient(j) + step[j] < least(j))) continue;
            step[j] = least(j) - coefficient(j);
            descent.free[j] = 0;
            again = true;
        }
    }
    for (int j = 0; j < P; ++j)
        if (step[j] != 0.0) set(j, coefficient(j) + step[j]);
    std::copy(at.begin(), at.end(), theta);
    return true;
}

double smooth_value(const Problem& problem, const double* theta, Workspace& ws) {
    Descent descent(problem, theta, ws);
    descent.measure(descent.theta, problem.spread, 0, descent.at);
    return std::isfinite(descent.at.value) ? descent.at.value : INFINITY;
}

double first_delta(const Problem& problem, const double* start, Workspace& ws) {
    Descent descent(problem, start, ws);
    if (!(problem.delta < problem.spread)) return problem.delta;
    const double typical = descent.median_residual();
    double delta = problem.spread;
    while (delta > 20 * typical && delta > problem.delta) delta *= 0.1;
    return std::max(delta, problem.delta);
}

void approach(const Problem& problem, const double* start, double delta, double damping, Workspace& ws, Approach& out) {
    Descent descent(problem, start, ws);
    descent.damping = damping;
    out.status = descent.descend(delta, 1, 1e-5, 100);
    out.theta = descent.theta;
    out.value = descent.at.value;
    out.delta = delta;
    out.damping = descent.damping;
    out.iterations = descent.iterations;
}

void polish(const Problem& problem, const Approach& from, Workspace& ws, Solution& out) {
    // Of a nearly absolute loss the curvature says little beyond the kinks that are near: damping leans on the majorizer.
    Descent descent(problem, from.theta.data(), ws, std::isfinite(problem.delta));
    Status status = from.status;
    if (status != Status::not_finite) {
        descent.damping = std::min(from.damping, 1e-2);
        if (std::isfinite(problem.delta)) {
            for (double delta = 0.1 * from.delta; delta > 3 * problem.delta; delta *= 0.1) {
                descent.descend(delta, 1, 1e-3, 30);
                descent.damping = std::min(descent.damping, 1e-2);
            }
            // Gauss-Newton first: far out the exact Hessian is seldom positive definite.
            descent.descend(problem.delta, 1, 1e-3, 10);
            descent.damping = std::min(descent.damping, 1e-3);
        }
        status = descent.descend(problem.delta, 2, 1e-13, 200);
    }
    descent.find_free();
    out.theta = descent.theta;
    out.value = descent.at.value;
    out.gradient = descent.scaled_gradient();
    out.iterations = descent.iterations;
    out.status = std::isfinite(out.value) ? status : Status::not_finite;
}

namespace {

bool close(const std::vector<double>& a, const std::vector<double>& b) {
    for (std::size_t j = 0; j < a.size(); ++j)
        if (std::abs(a[j] - b[j]) > 1e-2 * (0.1 + std::abs(a[j]))) return false;
    return true;
}

}  // namespace

bool leads_to(const Problem& problem, const double* start, const Approach& end, Workspace& ws) {
    Descent descent(problem, start, ws);
    descent.damping = kNearDamping;
    descent.measure(descent.theta, end.delta, 1, descent.at);
    if (end.status != Status::converged || !std::isfinite(descent.at.value)) return false;
    descent.find_free();
    if (!descent.box_step() || descent.clipped) return false;
    descent.add_step(descent.trial);
    const double predicted = descent.at.value - predicted_decrease(descent.at, descent.step);
    return std::abs(predicted - end.value) <= 2e-2 * end.value && close(descent.trial, end.theta);
}

bool same_end(const Approach& a, const Approach& b) {
    if (a.status != Status::converged || b.status != Status::converged) return false;
    if (std::abs(a.value - b.value) > 1e-4 * std::abs(a.value)) return false;
    return close(a.theta, b.theta);
}

}  // namespace pyscaling
