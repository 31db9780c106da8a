#include "batch.hpp"

#include <algorithm>
#include <exception>
#include <cmath>
#include <mutex>
#include <numeric>
#include <optional>
#include <system_error>
#include <thread>

namespace pyscaling {

namespace {

// SplitMix64 (Steele et al. 2014), keyed by (seed, resample).
class Random {
  public:
    Random(std::uint64_t seed, std::uint64_t stream) : state_(mix(seed) ^ mix(~stream)) {}
    std::uint64_t next() { return mix(state_ += 0x9E3779B97F4A7C15ull); }
    // Uniform on [0, n), by multiplication (Lemire 2019); the bias of n / 2^32 is far below what a resample can show.
    int below(int n) { return static_cast<int>((static_cast<std::uint64_t>(next() >> 32) * static_cast<std::uint64_t>(n)) >> 32); }

  private:
    static std::uint64_t mix(std::uint64_t z) {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        return z ^ (z >> 31);
    }
    std::uint64_t state_;
};

void store(const Results& results, int row, int P, const Solution& s) {
    std::copy(s.theta.begin(), s.theta.end(), results.theta + static_cast<std::size_t>(row) * P);
    results.value[row] = s.value;
    results.gradient[row] = s.gradient;
    results.iterations[row] = s.iterations;
    results.status[row] = static_cast<std::int32_t>(s.status);
}

void copy_row(const Results& results, int from, int to, int P) {
    if (from == to) return;
    std::copy_n(results.theta + static_cast<std::size_t>(from) * P, P, results.theta + static_cast<std::size_t>(to) * P);
    results.value[to] = results.value[from];
    results.gradient[to] = results.gradient[from];
    results.iterations[to] = results.iterations[from];
    results.status[to] = results.status[from];
}

constexpr int kMostThreads = 1024;

// Calls a copy of work() on each of `threads` threads, or of as many as the system grants; throws what one of them threw.
template <class Work>
void in_parallel(int threads, const Work& work) {
    std::mutex mutex;
    std::exception_ptr failure;
    const auto guarded = [&] {
        try {
            Work own = work;
            own();
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        while (static_cast<int>(others.size()) < threads - 1) others.emplace_back(guarded);
    } catch (const std::system_error&) {
    }
    guarded();
    for (std::thread& thread : others) thread.join();
    if (failure) std::rethrow_exception(failure);
}

// Calls work(item, workspace) for each item below `count`, spread over threads, until stopped.
template <class Work>
void for_each(const Batch& batch, int threads, int count, const Work& work) {
    std::atomic<int> next{0};
    in_parallel(threads, [&] {
        Workspace ws(*batch.tape);
        for (int k; !*batch.stop && (k = next++) < count;) work(k, ws);
    });
}

// Numbers the sets of starts that differ in linear parameters alone: row -> set.
std::vector<int> same_but_linear(const Batch& batch, int& n_set) {
    const int P = batch.tape->n_parameter;
    const auto compare = [&](int a, int b) {
        const double *x = batch.starts + static_cast<std::size_t>(a) * P, *y = batch.starts + static_cast<std::size_t>(b) * P;
        for (int j = 0; j < P; ++j)
            if (batch.tape->dependence[j] == Dependence::other && x[j] != y[j]) return x[j] < y[j] ? -1 : 1;
        return 0;
    };
    std::vector<int> order(batch.n_start), set(batch.n_start);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return compare(a, b) < 0; });
    n_set = 0;
    for (int k = 0; k < batch.n_start; ++k) {
        if (k == 0 || compare(order[k - 1], order[k]) != 0) ++n_set;
        set[order[k]] = n_set - 1;
    }
    return set;
}

// One fit per start. Linear parameters are solved for first: starts that differ in nothing else go on as one, but for those
// that began lower. Approaches that meet share a polish.
void fit_starts(const Batch& batch, const Problem& problem, const Results& results, int threads) {
    const int P = batch.tape->n_parameter, n_start = batch.n_start;
    const auto start = [&](int row) { return batch.starts + static_cast<std::size_t>(row) * P; };
    int n_set;
    const std::vector<int> set = same_but_linear(batch, n_set);
    std::vector<int> first(n_set, n_start);  // row
    for (int row = n_start - 1; row >= 0; --row) first[set[row]] = row;
    const Relative relative(problem);
    std::vector<double> projected(static_cast<std::size_t>(n_set) * P), value(n_set);
    const auto projection = [&](int k) { return &projected[static_cast<std::size_t>(k) * P]; };
    for_each(batch, threads, n_set, [&](int k, Workspace& ws) {
        std::copy_n(start(first[k]), P, projection(k));
        value[k] = project(relative.problem, projection(k), ws) ? smooth_value(problem, projection(k), ws) : INFINITY;
    });
    std::vector<char> alone(n_start);
    for_each(batch, threads, n_start, [&](int row, Workspace& ws) {
        alone[row] = !(value[set[row]] < smooth_value(problem, start(row), ws));
    });
    std::vector<int> path(n_start), joined(n_set, -1);  // row -> the row whose path it takes
    for (int row = 0; row < n_start; ++row) {
        if (!alone[row] && joined[set[row]] < 0) joined[set[row]] = row;
        path[row] = alone[row] ? row : joined[set[row]];
    }
    std::vector<Approach> ends(n_start);
    for_each(batch, threads, n_start, [&](int row, Workspace& ws) {
        if (path[row] != row) return;
        const double* from = alone[row] ? start(row) : projection(set[row]);
        approach(problem, from, first_delta(problem, from, ws), kFarDamping, ws, ends[row]);
    });
    std::vector<int> distinct, representative(n_start);
    for (int row = 0; row < n_start && !*batch.stop; ++row) {
        if (path[row] != row) continue;
        const auto met = std::find_if(distinct.begin(), distinct.end(), [&](int d) { return same_end(ends[d], ends[row]); });
        representative[row] = met == distinct.end() ? row : *met;
        if (met == distinct.end()) distinct.push_back(row);
    }
    std::vector<int> polishing(n_start);
    for_each(batch, threads, static_cast<int>(distinct.size()), [&](int k, Workspace& ws) {
        Solution solution;
        polish(problem, ends[distinct[k]], ws, solution);
        store(results, distinct[k], P, solution);
        polishing[distinct[k]] = solution.iterations;
    });
    for (int row = 0; row < n_start && !*batch.stop; ++row) {
        const int from = representative[path[row]];
        copy_row(results, from, row, P);
        results.iterations[row] = polishing[from] + ends[path[row]].iterations;
    }
}

// The points that a resample drew, gathered side by side: of n drawn with replacement a share 1/e is missing.
class Sample {
  public:
    Sample(const Batch& batch, Problem& problem)
        : batch_(batch), counts_(batch.n_cluster), rows_((batch.tape->n_column + 2) * static_cast<std::size_t>(batch.points.n)) {
        for (int c = 0; c < batch.tape->n_column; ++c) points_.columns.push_back(row(c));
        problem.points = &points_;
        problem.weights = row(batch.tape->n_column + 1);
    }

    // Returns the drawn points' y.
    const double* draw(int resample, const double* y) {
        draw_counts(batch_.seed, resample, counts_);
        const int columns = batch_.tape->n_column;
        int n = 0;
        for (int p = 0; p < batch_.points.n; ++p) {
            const double weight = batch_.weights[p] * counts_[batch_.cluster[p]];
            if (weight == 0.0) continue;
            for (int c = 0; c < columns; ++c) row(c)[n] = batch_.points.columns[c][p];
            row(columns)[n] = y[p];
            row(columns + 1)[n] = weight;
            ++n;
        }
        points_.n = n;
        return row(columns);
    }

  private:
    double* row(int k) { return rows_.data() + static_cast<std::size_t>(k) * batch_.points.n; }
    const Batch& batch_;
    std::vector<double> counts_, rows_;
    Points points_;
};

// The best of all starts for each resample.
void fit_resamples(const Batch& batch, Problem problem, const Results& results, int threads) {
    const int P = batch.tape->n_parameter;
    std::atomic<int> next{0};
    in_parallel(threads, [&, problem]() mutable {
        Workspace ws(*batch.tape);
        std::optional<Sample> sample;
        if (batch.cluster) sample.emplace(batch, problem);
        std::vector<Approach> ends(batch.n_start);
        Solution best, candidate;
        for (int row; !*batch.stop && (row = next++) < batch.n_resample;) {
            const double* y = batch.y + (batch.own_response ? static_cast<std::size_t>(row) * batch.points.n : 0);
            problem.y = sample ? sample->draw(row, y) : y;
            best.status = Status::not_finite;
            const double delta = first_delta(problem, batch.starts, ws);
            for (int s = 0; s < batch.n_start && !*batch.stop; ++s) {
                const double* start = batch.starts + static_cast<std::size_t>(s) * P;
                ends[s].status = Status::not_finite;
                if (s && leads_to(problem, start, ends[0], ws)) continue;
                approach(problem, start, delta, kNearDamping, ws, ends[s]);
                if (std::any_of(ends.begin(), ends.begin() + s, [&](const Approach& e) { return same_end(e, ends[s]); })) continue;
                polish(problem, ends[s], ws, candidate);
                const bool better = candidate.status != Status::not_finite && candidate.value < best.value;
                if (s == 0 || best.status == Status::not_finite || better) best = candidate;
            }
            store(results, row, P, best);
        }
    });
}

}  // namespace

void draw_counts(std::uint64_t seed, int resample, std::vector<double>& counts) {
    std::fill(counts.begin(), counts.end(), 0.0);
    Random random(seed, static_cast<std::uint64_t>(resample));
    const int n = static_cast<int>(counts.size());
    for (int k = 0; k < n; ++k) counts[random.below(n)] += 1.0;
}

void run_batch(const Batch& batch, const Results& results) {
    const Problem problem{batch.tape, &batch.points, batch.y, batch.weights, batch.lower, batch.upper, batch.delta, batch.over, batch.spread, batch.stop};
    const int threads = std::min(batch.threads, kMostThreads);
    if (batch.n_resample > 0) fit_resamples(batch, problem, results, std::min(threads, batch.n_resample));
    else fit_starts(batch, problem, results, std::min(threads, batch.n_start));
}

}  // namespace pyscaling
