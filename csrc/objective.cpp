#include "simd_math.hpp"

#include "objective.hpp"

#include <algorithm>

#define PYSCALING_INLINE __attribute__((always_inline)) inline

namespace pyscaling {

namespace {

// What the sums over a block weight the law's derivatives by; a log link is folded in, so that the tape stays the law's own.
// With L the law, J its gradient, f = 1 without a link and 1 / L with one:
//   gradient sum g J, g = w rho' f;  curvature sum c J J^T + sum g d2 L, c = w rho'' f^2, less g f at level 2 with a link;
//   scale sum s J^2, s = w min(1, delta / |r|) f^2.
struct BlockWeights {
    double *g, *c, *s;
};

constexpr double kTiny = 1e-150;  // below every residual that matters

template <bool kLog>
PYSCALING_INLINE double residuals(const double* law, const double* y, const double* weights, int n, double delta, double over,
                                  double exact, double* gradient, double* curvature, double* scale) {
    double total = 0.0;
    if (kLog) {  // apart, for a call of the vector logarithm spills every register
#pragma omp simd
        for (int p = 0; p < n; ++p) gradient[p] = log(law[p]);
    }
#pragma omp simd reduction(+ : total)
    for (int p = 0; p < n; ++p) {
        const double r = (kLog ? gradient[p] : law[p]) - y[p];
        const double size = r < 0 ? -r : r;
        const double w = r > 0 ? over * weights[p] : weights[p];
        const double divisor = size > kTiny ? size : kTiny;
        const double reciprocal = 1.0 / (kLog ? law[p] * divisor : divisor);  // one division for two quotients
        const double factor = kLog ? reciprocal * divisor : 1.0;
        const double ratio = delta * (kLog ? reciprocal * law[p] : reciprocal);
        const double shrink = size <= delta ? w : w * ratio;
        const double inner = size < delta ? size : delta;
        total += w * inner * (size - 0.5 * inner);
        const double g = shrink * r * factor;
        gradient[p] = g;
        scale[p] = shrink * factor * factor;
        const double bend = size <= delta ? w : 0.0;
        curvature[p] = kLog ? (bend * factor - exact * g) * factor : bend;
    }
    return total;
}

PYSCALING_CLONES
double residual_block(const double* law, const double* y, const double* w, int n, double delta, double over, bool log_link,
                      bool exact, double* gradient, double* curvature, double* scale) {
    return log_link ? residuals<true>(law, y, w, n, delta, over, exact, gradient, curvature, scale)
                    : residuals<false>(law, y, w, n, delta, over, exact, gradient, curvature, scale);
}

constexpr int kTile = 3;  // rows summed together: 12 sums and 6 operands fit the vector registers of AVX-512, nearly those of AVX2

// Sums over R rows a, b, c: gradient [R], scale [R], lower triangle [R (R + 1) / 2].
template <int R>
PYSCALING_INLINE void diagonal_tile(const double* a, const double* b, const double* c, BlockWeights w, int n, double* gradient,
                                    double* scale, double* h) {
    double ga = 0, gb = 0, gc = 0, sa = 0, sb = 0, sc = 0, aa = 0, ba = 0, bb = 0, ca = 0, cb = 0, cc = 0;
#pragma omp simd reduction(+ : ga, gb, gc, sa, sb, sc, aa, ba, bb, ca, cb, cc)
    for (int p = 0; p < n; ++p) {
        ga += w.g[p] * a[p];
        sa += w.s[p] * a[p] * a[p];
        aa += w.c[p] * a[p] * a[p];
        if constexpr (R > 1) {
            const double v = w.c[p] * b[p];
            gb += w.g[p] * b[p];
            sb += w.s[p] * b[p] * b[p];
            ba += v * a[p];
            bb += v * b[p];
        }
        if constexpr (R > 2) {
            const double v = w.c[p] * c[p];
            gc += w.g[p] * c[p];
            sc += w.s[p] * c[p] * c[p];
            ca += v * a[p];
            cb += v * b[p];
            cc += v * c[p];
        }
    }
    const double g[] = {ga, gb, gc}, s[] = {sa, sb, sc}, t[] = {aa, ba, bb, ca, cb, cc};
    std::copy_n(g, R, gradient);
    std::copy_n(s, R, scale);
    std::copy_n(t, R * (R + 1) / 2, h);
}

// Sums over R rows x three columns d, e, f: h [R, 3].
template <int R>
PYSCALING_INLINE void square_tile(const double* a, const double* b, const double* c, const double* d, const double* e,
                                  const double* f, const double* weight, int n, double* h) {
    double ad = 0, ae = 0, af = 0, bd = 0, be = 0, bf = 0, cd = 0, ce = 0, cf = 0;
#pragma omp simd reduction(+ : ad, ae, af, bd, be, bf, cd, ce, cf)
    for (int p = 0; p < n; ++p) {
        const double u = weight[p] * d[p], v = weight[p] * e[p], w = weight[p] * f[p];
        ad += a[p] * u, ae += a[p] * v, af += a[p] * w;
        if constexpr (R > 1) bd += b[p] * u, be += b[p] * v, bf += b[p] * w;
        if constexpr (R > 2) cd += c[p] * u, ce += c[p] * v, cf += c[p] * w;
    }
    const double t[] = {ad, ae, af, bd, be, bf, cd, ce, cf};
    std::copy_n(t, 3 * R, h);
}

// The same over all of five rows a .. e: 25 sums, for the most frequent size of a law.
PYSCALING_CLONES
void five_rows(const double* const* rows, BlockWeights w, int n, double* gradient, double* scale, double* h) {
    const double *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3], *e = rows[4];
    double ga = 0, gb = 0, gc = 0, gd = 0, ge = 0, sa = 0, sb = 0, sc = 0, sd = 0, se = 0;
    double aa = 0, ba = 0, bb = 0, ca = 0, cb = 0, cc = 0, da = 0, db = 0, dc = 0, dd = 0, ea = 0, eb = 0, ec = 0, ed = 0, ee = 0;
#pragma omp simd reduction(+ : ga, gb, gc, gd, ge, sa, sb, sc, sd, se, aa, ba, bb, ca, cb, cc, da, db, dc, dd, ea, eb, ec, ed, ee)
    for (int p = 0; p < n; ++p) {
        const double g = w.g[p], s = w.s[p], q = w.c[p], A = a[p], B = b[p], C = c[p], D = d[p], E = e[p];
        ga += g * A, gb += g * B, gc += g * C, gd += g * D, ge += g * E;
        sa += s * A * A, sb += s * B * B, sc += s * C * C, sd += s * D * D, se += s * E * E;
        const double qA = q * A, qB = q * B, qC = q * C, qD = q * D;
        aa += qA * A, ba += qA * B, ca += qA * C, da += qA * D, ea += qA * E;
        bb += qB * B, cb += qB * C, db += qB * D, eb += qB * E;
        cc += qC * C, dc += qC * D, ec += qC * E;
        dd += qD * D, ed += qD * E;
        ee += q * E * E;
    }
    const double g[] = {ga, gb, gc, gd, ge}, s[] = {sa, sb, sc, sd, se};
    const double t[] = {aa, ba, bb, ca, cb, cc, da, db, dc, dd, ea, eb, ec, ed, ee};
    std::copy_n(g, 5, gradient);
    std::copy_n(s, 5, scale);
    std::copy_n(t, 15, h);
}

PYSCALING_CLONES
void diagonal(const double* const* rows, int R, BlockWeights w, int n, double* gradient, double* scale, double* h) {
    if (R == 3) diagonal_tile<3>(rows[0], rows[1], rows[2], w, n, gradient, scale, h);
    else if (R == 2) diagonal_tile<2>(rows[0], rows[1], nullptr, w, n, gradient, scale, h);
    else diagonal_tile<1>(rows[0], nullptr, nullptr, w, n, gradient, scale, h);
}

PYSCALING_CLONES
void square(const double* const* rows, int R, const double* const* columns, const double* weight, int n, double* h) {
    const double *d = columns[0], *e = columns[1], *f = columns[2];
    if (R == 3) square_tile<3>(rows[0], rows[1], rows[2], d, e, f, weight, n, h);
    else if (R == 2) square_tile<2>(rows[0], rows[1], nullptr, d, e, f, weight, n, h);
    else square_tile<1>(rows[0], nullptr, nullptr, d, e, f, weight, n, h);
}

// Adds a block's sums to a matrix (lower triangle by rows) and, unless null, to the gradient and the scale.
void add_sums(const std::vector<const double*>& rows, BlockWeights w, int n, double* matrix, double* gradient_out,
              double* scale_out) {
    const int P = static_cast<int>(rows.size());
    if (P == 5) {
        double gradient[5], scale[5], h[15];
        five_rows(rows.data(), w, n, gradient, scale, h);
        for (int j = 0; j < 5; ++j) {
            if (gradient_out) gradient_out[j] += gradient[j];
            if (scale_out) scale_out[j] += scale[j];
        }
        for (int k = 0; k < 15; ++k) matrix[k] += h[k];
        return;
    }
    double gradient[kTile], scale[kTile], h[kTile * kTile];
    for (int i = 0; i < P; i += kTile) {
        const int R = std::min(kTile, P - i);
        diagonal(&rows[i], R, w, n, gradient, scale, h);
        for (int a = 0, k = 0; a < R; ++a) {
            if (gradient_out) gradient_out[i + a] += gradient[a];
            if (scale_out) scale_out[i + a] += scale[a];
            double* row = &matrix[(i + a) * (i + a + 1) / 2 + i];
            for (int b = 0; b <= a; ++b, ++k) row[b] += h[k];
        }
        for (int j = 0; j < i; j += kTile) {
            square(&rows[i], R, &rows[j], w.c, n, h);
            for (int a = 0; a < R; ++a)
                for (int b = 0; b < kTile; ++b) matrix[(i + a) * (i + a + 1) / 2 + j + b] += h[kTile * a + b];
        }
    }
}

}  // namespace

void evaluate(const Tape& tape, const Points& points, const double* y, const double* weights, const double* theta,
              double delta, double over, int level, Workspace& ws, Evaluation& out) {
    const int P = tape.n_parameter;
    set_parameters(tape, theta, ws);
    out.value = 0.0;
    if (level > 0) {
        std::fill(out.gradient.begin(), out.gradient.end(), 0.0);
        std::fill(out.curvature.begin(), out.curvature.end(), 0.0);
        std::fill(out.scale.begin(), out.scale.end(), 0.0);
        std::fill(out.majorizer.begin(), out.majorizer.end(), 0.0);
    }
    const BlockWeights w{ws.work.data(), ws.work.data() + kBlock, ws.work.data() + 2 * kBlock};
    for (int first = 0; first < points.n; first += kBlock) {
        const int n = std::min(kBlock, points.n - first);
        run_level(tape, points, first, n, 0, ws);
        out.value += residual_block(slot(tape, points, first, ws, tape.value), y + first, weights + first, n, delta, over,
                                    tape.log_link, level == 2, w.g, w.c, w.s);
        if (level == 0) continue;
        run_level(tape, points, first, n, 1, ws);
        for (int j = 0; j < P; ++j) ws.rows[j] = slot(tape, points, first, ws, tape.gradient[j]);
        add_sums(ws.rows, w, n, out.curvature.data(), out.gradient.data(), out.scale.data());
        if (!out.majorizer.empty()) add_sums(ws.rows, {w.g, w.s, w.s}, n, out.majorizer.data(), nullptr, nullptr);
        if (level == 2) run_level(tape, points, first, n, 2, ws, w.g, out.curvature.data());
    }
}

}  // namespace pyscaling
