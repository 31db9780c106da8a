#include "batch.hpp"

#include <algorithm>
#include <exception>
#include <mutex>
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

// One fit per start; starts whose approaches meet share a polish.
void fit_starts(const Batch& batch, const Problem& problem, const Results& results, int threads) {
    const int P = batch.tape->n_parameter;
    std::vector<Approach> ends(batch.n_start);
    std::atomic<int> next{0};
    in_parallel(threads, [&] {
        Workspace ws(*batch.tape);
        for (int row; !*batch.stop && (row = next++) < batch.n_start;) {
            const double* start = batch.starts + static_cast<std::size_t>(row) * P;
            approach(problem, start, first_delta(problem, start, ws), kFarDamping, ws, ends[row]);
        }
    });
    std::vector<int> distinct, representative(batch.n_start);
    for (int row = 0; row < batch.n_start && !*batch.stop; ++row) {
        const auto met = std::find_if(distinct.begin(), distinct.end(), [&](int d) { return same_end(ends[d], ends[row]); });
        representative[row] = met == distinct.end() ? row : *met;
        if (met == distinct.end()) distinct.push_back(row);
    }
    std::vector<int> polishing(batch.n_start);
    next = 0;
    in_parallel(threads, [&] {
        Workspace ws(*batch.tape);
        Solution solution;
        for (int k; !*batch.stop && (k = next++) < static_cast<int>(distinct.size());) {
            polish(problem, ends[distinct[k]], ws, solution);
            store(results, distinct[k], P, solution);
            polishing[distinct[k]] = solution.iterations;
        }
    });
    for (int row = 0; row < batch.n_start && !*batch.stop; ++row) {
        copy_row(results, representative[row], row, P);
        results.iterations[row] = polishing[representative[row]] + ends[row].iterations;
    }
}

// The best of all starts for each resample.
void fit_resamples(const Batch& batch, Problem problem, const Results& results, int threads) {
    const int P = batch.tape->n_parameter;
    std::atomic<int> next{0};
    in_parallel(threads, [&, problem]() mutable {
        Workspace ws(*batch.tape);
        std::vector<double> counts(batch.cluster ? batch.n_cluster : 0), weights(batch.cluster ? batch.points.n : 0);
        std::vector<Approach> ends(batch.n_start);
        Solution best, candidate;
        for (int row; !*batch.stop && (row = next++) < batch.n_resample;) {
            if (batch.own_response) problem.y = batch.y + static_cast<std::size_t>(row) * batch.points.n;
            if (batch.cluster) {
                draw_counts(batch.seed, row, counts);
                for (int p = 0; p < batch.points.n; ++p) weights[p] = batch.weights[p] * counts[batch.cluster[p]];
                problem.weights = weights.data();
            }
            best.status = Status::not_finite;
            const double delta = first_delta(problem, batch.starts, ws);
            for (int s = 0; s < batch.n_start && !*batch.stop; ++s) {
                approach(problem, batch.starts + static_cast<std::size_t>(s) * P, delta, kNearDamping, ws, ends[s]);
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
    const Problem problem{batch.tape, &batch.points, batch.y, batch.weights, batch.lower, batch.upper, batch.delta, batch.spread, batch.stop};
    const int threads = std::min(batch.threads, kMostThreads);
    if (batch.n_resample > 0) fit_resamples(batch, problem, results, std::min(threads, batch.n_resample));
    else fit_starts(batch, problem, results, std::min(threads, batch.n_start));
}

}  // namespace pyscaling
