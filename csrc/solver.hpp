// A damped Newton method with bounds for the objectives of objective.hpp.
//
// A Huber loss with a small delta is nearly an absolute one: from a bad start its curvature is zero almost everywhere.
// So a fit has two parts: `approach` solves the problem for a large delta with Gauss-Newton steps; `polish` shrinks delta
// in stages to the one asked for and ends with the exact Hessian. Starts whose approaches meet need only one polish.
#pragma once

#include <atomic>
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
    double over;    // factor on the weight of points that the law lies above
    double spread;  // typical size of y's variation: no stage begins with a larger delta
    const std::atomic<bool>* stop;  // gives up when set
};

enum class Status : int { converged = 0, stalled = 1, iterations = 2, not_finite = 3 };

struct Solution {
    std::vector<double> theta;
    double value = 0.0;
    double gradient = 0.0;  // largest |g_j| / sqrt(scale_j * value) over parameters that are free to move
    int iterations = 0;
    Status status = Status::not_finite;
};

// Where an approach ended.
struct Approach {
    std::vector<double> theta;
    double value = 0.0, delta = 0.0, damping = 0.0;  // of the smoothed objective; where its solver stood
    int iterations = 0;
    Status status = Status::not_finite;
};

constexpr double kFarDamping = 1e-3, kNearDamping = 1e-9;  // to begin with, far from a minimum and near one

// A problem in which the law's linear parameters are linear: least squares, of a logarithm's residual (law - exp(y)) / exp(y).
struct Relative {
    Tape tape;
    std::vector<double> y, weights;
    Problem problem;
    explicit Relative(const Problem& of);
};

// Solves a relative problem for the parameters in which the law is linear, the others held (variable projection, Golub &
// Pereyra 1973), whatever theta has for them; terms that the data cannot tell apart become equal. False if it cannot.
bool project(const Problem& relative, double* theta, Workspace& ws);
// The objective of the widest delta, infinity where it is not finite.
double smooth_value(const Problem& problem, const double* theta, Workspace& ws);

// A delta at which the residuals at a start count as small: spread, or less by powers of ten.
double first_delta(const Problem& problem, const double* start, Workspace& ws);
void approach(const Problem& problem, const double* start, double delta, double damping, Workspace& ws, Approach& out);
void polish(const Problem& problem, const Approach& from, Workspace& ws, Solution& out);

// Whether a step of Newton's method from a start lands where an approach ended, with the value that it found there.
bool leads_to(const Problem& problem, const double* start, const Approach& end, Workspace& ws);

// Whether two approaches ended at one point, so that what follows is the same for both.
bool same_end(const Approach& a, const Approach& b);

}  // namespace pyscaling
