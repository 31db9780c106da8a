#include "batch.hpp"

#include <algorithm>
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

void draw_weights(const Batch& batch, int resample, std::vector<double>& counts, std::vector<double>& weights) {
    std::fill(counts.begin(), counts.end(), 0.0);
    Random random(batch.seed, static_cast<std::uint64_t>(resample));
    for (int k = 0; k < batch.n_cluster; ++k) counts[random.below(batch.n_cluster)] += 1.0;
    for (int p = 0; p < batch.points.n; ++p) weights[p] = batch.weights[p] * counts[batch.cluster[p]];
}

void store(const Results& results, int row, int P, const Solution& s) {
    std::copy(s.theta.begin(), s.theta.end(), results.theta + static_cast<std::size_t>(row) * P);
    results.value[row] = s.value;
    results.gradient[row] = s.gradient;
    results.iterations[row] = s.iterations;
    results.status[row] = static_cast<std::int32_t>(s.status);
}

}  // namespace

void run_batch(const Batch& batch, const Results& results, std::atomic<bool>& stop, std::atomic<int>& done) {
    const int P = batch.tape->n_parameter;
    const int rows = batch.n_resample > 0 ? batch.n_resample : batch.n_start;
    std::atomic<int> next{0};
    auto work = [&] {
        Workspace ws(*batch.tape);
        std::vector<double> counts(batch.cluster ? batch.n_cluster : 0), weights(batch.cluster ? batch.points.n : 0);
        Problem problem{batch.tape, &batch.points, batch.y, batch.weights, batch.lower, batch.upper, batch.delta, batch.spread};
        Solution best, candidate;
        for (int row; !stop && (row = next++) < rows; ++done) {
            if (batch.n_resample == 0) {
                solve(problem, batch.starts + static_cast<std::size_t>(row) * P, ws, best);
                store(results, row, P, best);
                continue;
            }
            if (batch.own_response) problem.y = batch.y + static_cast<std::size_t>(row) * batch.points.n;
            if (batch.cluster) {
                draw_weights(batch, row, counts, weights);
                problem.weights = weights.data();
            }
            for (int s = 0; s < batch.n_start && !stop; ++s) {
                solve(problem, batch.starts + static_cast<std::size_t>(s) * P, ws, candidate);
                const bool better = candidate.status != Status::not_finite && candidate.value < best.value;
                if (s == 0 || best.status == Status::not_finite || better) best = candidate;
            }
            store(results, row, P, best);
        }
    };
    std::vector<std::thread> threads;
    for (int t = 1; t < std::min(batch.threads, rows); ++t) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
}

}  // namespace pyscaling
