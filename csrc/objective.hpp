// The objective of a fit, sum_i w_i rho(r_i) with r = law - y (or log law - y), its gradient and its curvature; where r > 0,
// the law above the run, w counts `over` times.
#pragma once

#include <vector>

#include "tape.hpp"

namespace pyscaling {

// rho(r) = r^2 / 2 for |r| <= delta, else delta (|r| - delta / 2); delta = infinity is least squares.
struct Evaluation {
    double value = 0.0;
    std::vector<double> gradient;   // n_parameter
    std::vector<double> curvature;  // lower triangle by rows: Gauss-Newton, plus sum w psi(r) d2 law at level 2
    std::vector<double> scale;      // n_parameter: sum w min(1, delta / |r|) J_j^2, always positive definite as a diagonal
    // Lower triangle by rows, if asked for: sum w min(1, delta / |r|) J J', the curvature of a parabola that lies above
    // each rho and touches it (Huber & Ronchetti 2009, section 7.8). Its diagonal is `scale`.
    std::vector<double> majorizer;
    Evaluation(int n_parameter, bool majorize)
        : gradient(n_parameter), curvature(n_parameter * (n_parameter + 1) / 2), scale(n_parameter),
          majorizer(majorize ? curvature.size() : 0) {}
};

// level 0: value; 1: with gradient and Gauss-Newton matrix; 2: with the exact Hessian.
void evaluate(const Tape& tape, const Points& points, const double* y, const double* weights, const double* theta,
              double delta, double over, int level, Workspace& ws, Evaluation& out);

}  // namespace pyscaling
