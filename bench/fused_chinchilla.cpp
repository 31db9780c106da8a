// The Chinchilla law's Huber objective, gradient and Gauss-Newton matrix, fused by hand: what the tape is measured against.
// Built by bench/test_fit.py with the flags of setup.py.
#include "../csrc/simd_math.hpp"

#include <algorithm>

namespace {

constexpr int kPoints = 256;

PYSCALING_CLONES
double evaluate(const double* log_N, const double* log_D, const double* y, const double* w, int n, const double* theta,
                double delta, double* gradient, double* curvature) {
    const double E = std::exp(theta[0]), a = theta[1], alpha = theta[2], b = theta[3], beta = theta[4];
    alignas(64) double term_N[kPoints], term_D[kPoints], r[kPoints], inverse[kPoints];
    double value = 0, g0 = 0, g1 = 0, g2 = 0, g3 = 0, g4 = 0;
    double h00 = 0, h10 = 0, h11 = 0, h20 = 0, h21 = 0, h22 = 0, h30 = 0, h31 = 0, h32 = 0, h33 = 0;
    double h40 = 0, h41 = 0, h42 = 0, h43 = 0, h44 = 0;
    for (int first = 0; first < n; first += kPoints) {
        const int m = std::min(kPoints, n - first);
        const double *u = log_N + first, *v = log_D + first, *t = y + first, *q = w + first;
#pragma omp simd
        for (int p = 0; p < m; ++p) {
            term_N[p] = exp(a - alpha * u[p]);
            term_D[p] = exp(b - beta * v[p]);
            const double loss = E + term_N[p] + term_D[p];
            r[p] = log(loss) - t[p];
            inverse[p] = 1.0 / loss;
        }
#pragma omp simd reduction(+ : value, g0, g1, g2, g3, g4, h00, h10, h11, h20, h21, h22, h30, h31, h32, h33, h40, h41, h42, h43, h44)
        for (int p = 0; p < m; ++p) {
            const double size = r[p] < 0 ? -r[p] : r[p];
            const bool inside = size <= delta;
            value += q[p] * (inside ? 0.5 * r[p] * r[p] : delta * (size - 0.5 * delta));
            const double psi = q[p] * (inside ? r[p] : r[p] < 0 ? -delta : delta);
            const double c = inside ? q[p] : 0.0;
            const double j0 = E * inverse[p], j1 = term_N[p] * inverse[p], j2 = -u[p] * j1, j3 = term_D[p] * inverse[p],
                         j4 = -v[p] * j3;
            g0 += psi * j0; g1 += psi * j1; g2 += psi * j2; g3 += psi * j3; g4 += psi * j4;
            const double c0 = c * j0, c1 = c * j1, c2 = c * j2, c3 = c * j3, c4 = c * j4;
            h00 += c0 * j0;
            h10 += c1 * j0; h11 += c1 * j1;
            h20 += c2 * j0; h21 += c2 * j1; h22 += c2 * j2;
            h30 += c3 * j0; h31 += c3 * j1; h32 += c3 * j2; h33 += c3 * j3;
            h40 += c4 * j0; h41 += c4 * j1; h42 += c4 * j2; h43 += c4 * j3; h44 += c4 * j4;
        }
    }
    const double g[] = {g0, g1, g2, g3, g4};
    const double h[] = {h00, h10, h11, h20, h21, h22, h30, h31, h32, h33, h40, h41, h42, h43, h44};
    std::copy(g, g + 5, gradient);
    std::copy(h, h + 15, curvature);
    return value;
}

}  // namespace

extern "C" double evaluate_repeatedly(const double* log_N, const double* log_D, const double* y, const double* w, int n,
                                      const double* theta, double delta, double* gradient, double* curvature, int repeat) {
    double value = 0;
    for (int i = 0; i < repeat; ++i) value = evaluate(log_N, log_D, y, w, n, theta, delta, gradient, curvature);
    return value;
}
