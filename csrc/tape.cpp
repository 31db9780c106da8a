#include "simd_math.hpp"

#include "tape.hpp"

namespace pyscaling {

void set_parameters(const Tape& tape, const double* theta, Workspace& ws) {
    double* s = ws.scalars.data();
    for (int j = 0; j < tape.n_parameter; ++j) s[j] = theta[j];
    for (const Instruction& i : tape.scalar_code) {
        switch (i.op) {
            case Op::add: s[i.out] = s[i.a] + s[i.b]; break;
            case Op::sub: s[i.out] = s[i.a] - s[i.b]; break;
            case Op::mul: s[i.out] = s[i.a] * s[i.b]; break;
            case Op::exp: s[i.out] = std::exp(s[i.a]); break;
            case Op::log: s[i.out] = std::log(s[i.a]); break;
            case Op::recip: s[i.out] = 1.0 / s[i.a]; break;
            case Op::max: s[i.out] = s[i.a] < s[i.b] ? s[i.b] : s[i.a]; break;
            case Op::less: s[i.out] = s[i.a] < s[i.b] ? 1.0 : 0.0; break;
            case Op::fma: s[i.out] = s[i.a] * s[i.b] + s[i.c]; break;
            case Op::copy:
            case Op::emit: break;
        }
    }
}

namespace {

// Applies f to two operands of which either, not both, may be a scalar.
template <class F>
__attribute__((always_inline)) inline void binary(double* out, const double* a, double sa, const double* b, double sb,
                                                  int n, F f) {
    if (!a) {
#pragma omp simd
        for (int p = 0; p < n; ++p) out[p] = f(sa, b[p]);
    } else if (!b) {
#pragma omp simd
        for (int p = 0; p < n; ++p) out[p] = f(a[p], sb);
    } else {
#pragma omp simd
        for (int p = 0; p < n; ++p) out[p] = f(a[p], b[p]);
    }
}

}  // namespace

PYSCALING_CLONES
void run_level(const Tape& tape, const Points& points, int first, int n, int level, Workspace& ws, const double* weight,
               double* hessian) {
    const double* scalars = ws.scalars.data();
    double* registers = ws.registers.data();
    const int base = tape.n_scalar + tape.n_column;
    const Instruction* code = tape.vector_code.data();
    const int end = tape.level_end[level];
    for (int k = level ? tape.level_end[level - 1] : 0; k < end; ++k) {
        const Instruction i = code[k];
        const bool scalar_a = i.a < tape.n_scalar, scalar_b = i.b < tape.n_scalar, scalar_c = i.c < tape.n_scalar;
        const double sa = scalar_a ? scalars[i.a] : 0.0, sb = scalar_b ? scalars[i.b] : 0.0, sc = scalar_c ? scalars[i.c] : 0.0;
        const double* a = scalar_a ? nullptr : slot(tape, points, first, ws, i.a);
        const double* b = scalar_b ? nullptr : slot(tape, points, first, ws, i.b);
        const double* c = scalar_c ? nullptr : slot(tape, points, first, ws, i.c);
        if (i.op == Op::emit) {
            double total = 0.0;
#pragma omp simd reduction(+ : total)
            for (int p = 0; p < n; ++p) total += weight[p] * a[p];
            hessian[i.out] += total;
            continue;
        }
        double* out = registers + static_cast<std::size_t>(i.out - base) * kBlock;
        switch (i.op) {
            case Op::add: binary(out, a, sa, b, sb, n, [](double x, double y) { return x + y; }); break;
            case Op::sub: binary(out, a, sa, b, sb, n, [](double x, double y) { return x - y; }); break;
            case Op::mul: binary(out, a, sa, b, sb, n, [](double x, double y) { return x * y; }); break;
            case Op::max: binary(out, a, sa, b, sb, n, [](double x, double y) { return x < y ? y : x; }); break;
            case Op::less: binary(out, a, sa, b, sb, n, [](double x, double y) { return x < y ? 1.0 : 0.0; }); break;
            case Op::exp:
#pragma omp simd
                for (int p = 0; p < n; ++p) out[p] = exp(a[p]);
                break;
            case Op::log:
#pragma omp simd
                for (int p = 0; p < n; ++p) out[p] = log(a[p]);
                break;
            case Op::recip:
#pragma omp simd
                for (int p = 0; p < n; ++p) out[p] = 1.0 / a[p];
                break;
            case Op::copy:
                for (int p = 0; p < n; ++p) out[p] = sa;
                break;
            case Op::fma:
                if (scalar_b && scalar_c) {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] * sb + sc;
                } else if (scalar_b) {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] * sb + c[p];
                } else if (scalar_c) {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] * b[p] + sc;
                } else {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] * b[p] + c[p];
                }
                break;
            case Op::emit: break;
        }
    }
}

}  // namespace pyscaling
