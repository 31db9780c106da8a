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
            case Op::copy: s[i.out] = s[i.a]; break;
            case Op::max: s[i.out] = s[i.a] < s[i.b] ? s[i.b] : s[i.a]; break;
            case Op::less: s[i.out] = s[i.a] < s[i.b] ? 1.0 : 0.0; break;
        }
    }
}

PYSCALING_CLONES
void run_block(const Tape& tape, const Points& points, int first, int n, int level, Workspace& ws) {
    const double* scalars = ws.scalars.data();
    double* registers = ws.registers.data();
    const int base = tape.n_scalar + tape.n_column;
    const Instruction* code = tape.vector_code.data();
    const int end = tape.level_end[level];
    for (int k = 0; k < end; ++k) {
        const Instruction i = code[k];
        double* __restrict out = registers + static_cast<std::size_t>(i.out - base) * kBlock;
        const bool scalar_a = i.a < tape.n_scalar, scalar_b = i.b < tape.n_scalar;
        const double sa = scalar_a ? scalars[i.a] : 0.0, sb = scalar_b ? scalars[i.b] : 0.0;
        const double* a = scalar_a ? nullptr : slot(tape, points, first, ws, i.a);
        const double* b = scalar_b ? nullptr : slot(tape, points, first, ws, i.b);
        switch (i.op) {
            case Op::add:
                if (scalar_b) {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] + sb;
                } else {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] + b[p];
                }
                break;
            case Op::sub:
                if (scalar_a) {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = sa - b[p];
                } else if (scalar_b) {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] - sb;
                } else {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] - b[p];
                }
                break;
            case Op::mul:
                if (scalar_b) {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] * sb;
                } else {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] * b[p];
                }
                break;
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
                if (scalar_a) {
                    for (int p = 0; p < n; ++p) out[p] = sa;
                } else {
                    for (int p = 0; p < n; ++p) out[p] = a[p];
                }
                break;
            case Op::max:
                if (scalar_b) {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] < sb ? sb : a[p];
                } else {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] < b[p] ? b[p] : a[p];
                }
                break;
            case Op::less:
                if (scalar_a) {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = sa < b[p] ? 1.0 : 0.0;
                } else if (scalar_b) {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] < sb ? 1.0 : 0.0;
                } else {
#pragma omp simd
                    for (int p = 0; p < n; ++p) out[p] = a[p] < b[p] ? 1.0 : 0.0;
                }
                break;
        }
    }
}

}  // namespace pyscaling
