#include "solver.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pyscaling {

namespace {

// Solves (H + damping diag(scale)) step = -g on the free parameters. False if not positive definite.
bool damped_step(const Evaluation& at, const std::vector<char>& free, double damping, std::vector<double>& factor,
                 std::vector<double>& step) {
    const int P = static_cast<int>(step.size());
    for (int i = 0, k = 0; i < P; ++i) {
        for (int j = 0; j <= i; ++j, ++k) {
            double sum = 0.0;
            if (i == j) {
                const double pivot = at.curvature[k] + damping * at.scale[i];
                sum = free[i] ? pivot : 1.0;
            } else if (free[i] && free[j]) {
                sum = at.curvature[k];
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
        double sum = free[i] ? -at.gradient[i] : 0.0;
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

// A minimiser's state, carried from stage to stage.
struct Descent {
    const Problem& problem;
    Workspace& ws;
    std::vector<double> theta, trial, step, factor;
    std::vector<char> free;
    Evaluation at, next;
    double damping = 1e-3;
    int iterations = 0;

    Descent(const Problem& p, const double* start, Workspace& w)
        : problem(p), ws(w), theta(start, start + p.tape->n_parameter), trial(theta), step(theta),
          factor(theta.size() * theta.size()), free(theta.size()), at(p.tape->n_parameter), next(p.tape->n_parameter) {
        for (std::size_t j = 0; j < theta.size(); ++j) theta[j] = std::clamp(theta[j], p.lower[j], p.upper[j]);
    }

    void measure(const std::vector<double>& where, double delta, int level, Evaluation& out) {
        evaluate(*problem.tape, *problem.points, problem.y, problem.weights, where.data(), delta, level, ws, out);
    }

    void find_free() {
        for (std::size_t j = 0; j < theta.size(); ++j) {
            const bool held = problem.lower[j] == problem.upper[j] || (theta[j] <= problem.lower[j] && at.gradient[j] > 0) ||
                              (theta[j] >= problem.upper[j] && at.gradient[j] < 0) || !(at.scale[j] > 0);
            free[j] = !held;
        }
    }

    double scaled_gradient() const {
        double worst = 0.0;
        for (std::size_t j = 0; j < theta.size(); ++j)
            if (free[j]) worst = std::max(worst, std::abs(at.gradient[j]) / std::sqrt(at.scale[j] * std::max(at.value, 1e-300)));
        return worst;
    }

    // Minimises at one delta until the predicted decrease falls below `tolerance` times the value.
    Status descend(double delta, int level, double tolerance, int limit) {
        measure(theta, delta, level, at);
        if (!std::isfinite(at.value)) return Status::not_finite;
        for (int i = 0; i < limit; ++i) {
            find_free();
            if (at.value == 0.0) return Status::converged;
            bool solved = false;
            while (!(solved = damped_step(at, free, damping, factor, step)) && damping < 1e12)
                damping = std::max(10 * damping, 1e-10);
            if (!solved) return Status::stalled;
            bool clipped = false;
            for (std::size_t j = 0; j < theta.size(); ++j) {
                trial[j] = std::clamp(theta[j] + step[j], problem.lower[j], problem.upper[j]);
                clipped |= trial[j] != theta[j] + step[j];
                step[j] = trial[j] - theta[j];
            }
            const double predicted = predicted_decrease(at, step);
            ++iterations;
            if (!clipped && damping <= 1e-6 && predicted <= tolerance * at.value) return Status::converged;
            measure(trial, delta, level, next);
            const double actual = at.value - next.value;
            if (std::isfinite(next.value) && actual > 0) {
                const double ratio = predicted > 0 ? actual / predicted : 0.0;
                std::swap(theta, trial);
                std::swap(at, next);
                if (ratio > 0.75) damping = damping > 1e-13 ? damping / 10 : 0.0;
                else if (ratio < 0.25) damping = std::max(4 * damping, 1e-10);
            } else {
                // No decrease at rounding level: the step is as good as none.
                if (damping > 1e10 || (predicted >= 0 && predicted <= 1e-15 * at.value)) {
                    find_free();
                    return scaled_gradient() < 1e-5 ? Status::converged : Status::stalled;
                }
                damping = std::max(8 * damping, 1e-8);
            }
        }
        return Status::iterations;
    }
};

}  // namespace

void solve(const Problem& problem, const double* start, Workspace& ws, Solution& out) {
    Descent descent(problem, start, ws);
    const double infinity = std::numeric_limits<double>::infinity();
    Status status = Status::converged;
    for (double delta = problem.spread; delta > problem.delta && status != Status::not_finite; delta *= 0.1) {
        status = descent.descend(delta, 1, 1e-3, 30);
        descent.damping = std::min(descent.damping, 1e-2);
    }
    if (status != Status::not_finite) {
        // Gauss-Newton first: far out the exact Hessian is seldom positive definite.
        descent.descend(problem.delta, 1, 1e-4, problem.delta < infinity ? 10 : 60);
        descent.damping = std::min(descent.damping, 1e-3);
        status = descent.descend(problem.delta, 2, 1e-14, 200);
    }
    descent.find_free();
    out.theta = descent.theta;
    out.value = descent.at.value;
    out.gradient = descent.scaled_gradient();
    out.iterations = descent.iterations;
    out.status = std::isfinite(out.value) ? status : Status::not_finite;
}

}  // namespace pyscaling
