// Many fits of one law to one table: resamples (weight vectors or responses) times starts, spread over threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "solver.hpp"

namespace pyscaling {

struct Batch {
    const Tape* tape;
    Points points;
    const double* y;        // n, or n_resample x n when `own_response`
    const double* weights;  // n
    const std::int64_t* cluster;  // n: points of one cluster are drawn together; null for no resampling
    int n_cluster = 0;
    const double* starts;  // n_start x P
    int n_start = 0;
    int n_resample = 0;  // 0: one fit per start; otherwise the best of all starts for each resample
    bool own_response = false;
    std::uint64_t seed = 0;
    const double* lower;
    const double* upper;
    double delta, spread, over = 1.0;
    int threads = 1;
    const std::atomic<bool>* stop;  // set by another thread to give up
};

struct Results {  // one row per start, or per resample
    double* theta;
    double* value;
    double* gradient;
    std::int32_t* iterations;
    std::int32_t* status;
};

// How often each cluster is drawn in one resample: counts [n_cluster].
void draw_counts(std::uint64_t seed, int resample, std::vector<double>& counts);

// Each row depends on its own index alone, so that results do not depend on the number of threads.
void run_batch(const Batch& batch, const Results& results);

}  // namespace pyscaling
