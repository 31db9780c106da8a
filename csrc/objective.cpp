#include "simd_math.hpp"

#include "objective.hpp"

#include <algorithm>

namespace pyscaling {

namespace {

// Residuals of a block: psi = w rho', curve = w rho'', irls = w min(1, delta / |r|). Returns sum w rho.
PYSCALING_CLONES
double residual_block(const double* value, const double* y, const double* w, int n, double delta, double* psi,
                      double* curve, double* irls) {
    double total = 0.0;
#pragma omp simd reduction(+ : total)
    for (int p = 0; p < n; ++p) {
        const double r = value[p] - y[p];
        const double size = r < 0 ? -r : r;
        const bool inside = size <= delta;
        const double shrink = inside ? 1.0 : delta / size;
        total += w[p] * (inside ? 0.5 * r * r : delta * (size - 0.5 * delta));
        psi[p] = w[p] * shrink * r;
        curve[p] = inside ? w[p] : 0.0;
        irls[p] = w[p] * shrink;
    }
    return total;
}

PYSCALING_CLONES
double dot(const double* a, const double* b, int n) {
    double total = 0.0;
#pragma omp simd reduction(+ : total)
    for (int p = 0; p < n; ++p) total += a[p] * b[p];
    return total;
}

// sum psi j, sum irls j^2, and j scaled by `curve` into `scaled`.
PYSCALING_CLONES
void gradient_row(const double* j, const double* psi, const double* curve, const double* irls, int n, double* scaled,
                  double* gradient, double* scale) {
    double g = 0.0, s = 0.0;
#pragma omp simd reduction(+ : g, s)
    for (int p = 0; p < n; ++p) {
        g += psi[p] * j[p];
        s += irls[p] * j[p] * j[p];
        scaled[p] = curve[p] * j[p];
    }
    *gradient += g;
    *scale += s;
}

}  // namespace

void evaluate(const Tape& tape, const Points& points, const double* y, const double* weights, const double* theta,
              double delta, int level, Workspace& ws, Evaluation& out) {
    const int P = tape.n_parameter;
    set_parameters(tape, theta, ws);
    out.value = 0.0;
    if (level > 0) {
        std::fill(out.gradient.begin(), out.gradient.end(), 0.0);
        std::fill(out.curvature.begin(), out.curvature.end(), 0.0);
        std::fill(out.scale.begin(), out.scale.end(), 0.0);
    }
    double *psi = ws.work.data(), *curve = psi + kBlock, *irls = curve + kBlock, *scaled = irls + kBlock;
    for (int first = 0; first < points.n; first += kBlock) {
        const int n = std::min(kBlock, points.n - first);
        run_block(tape, points, first, n, level, ws);
        const double* value = slot(tape, points, first, ws, tape.value);
        out.value += residual_block(value, y + first, weights + first, n, delta, psi, curve, irls);
        if (level == 0) continue;
        int k = 0;
        for (int i = 0; i < P; ++i) {
            const double* ji = slot(tape, points, first, ws, tape.gradient[i]);
            gradient_row(ji, psi, curve, irls, n, scaled, &out.gradient[i], &out.scale[i]);
            for (int j = 0; j <= i; ++j, ++k)
                out.curvature[k] += dot(scaled, slot(tape, points, first, ws, tape.gradient[j]), n);
        }
        if (level == 2)
            for (std::size_t h = 0; h < tape.hessian.size(); ++h)
                out.curvature[h] += dot(psi, slot(tape, points, first, ws, tape.hessian[h]), n);
    }
}

}  // namespace pyscaling
