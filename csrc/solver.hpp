// A damped Newton method with bounds for the objectives of objective.hpp.
//
// A Huber loss with a small delta is nearly an absolute one: from a bad start its curvature is zero almost everywhere.
// So delta starts large and shrinks in stages with Gauss-Newton steps, and Newton with the exact Hessian ends the fit.
#pragma once

#include <vector>

#include "objective.hpp"

namespace pyscaling {

struct Problem {
    const Tape* tape;
    const Points* points;
    const double* y;
    const double* weights;
    const double* lower;  // n_parameter each; +-infinity where free
    const double* upper;
    double delta;   // of the objective asked for
    double spread;  // typical size of y's variation: delta starts here and shrinks tenfold a stage
};

enum class Status : int { converged = 0, stalled = 1, iterations = 2, not_finite = 3 };

struct Solution {
    std::vector<double> theta;
    double value = 0.0;
    double gradient = 0.0;  // largest |g_j| / sqrt(scale_j * value) over parameters that are free to move
    int iterations = 0;
    Status status = Status::not_finite;
};

void solve(const Problem& problem, const double* start, Workspace& ws, Solution& out);

}  // namespace pyscaling
