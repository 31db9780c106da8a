// A law as a flat list of instructions over blocks of points.
//
// Operands are slots: [0, n_scalar) scalars (constants, parameters and what depends on them alone), then n_column data
// columns, then registers, one block of points each. The vector code is cut into three levels: after `level_end[0]`
// instructions the value is known, after [1] the gradient, after [2] the second derivatives, each of which is summed as
// soon as it is known (`emit`), so that registers are few and stay in L1.
#pragma once

#include <cstdint>
#include <vector>

namespace pyscaling {

constexpr int kBlock = 256;  // points; the registers of a gradient (about 10) and its sums then stay in an L1 cache

// fma: a b + c; less: 1 where a < b, else 0; emit: adds the sum of weight x a to entry `out` of the Hessian.
enum class Op : std::int32_t { add, sub, mul, exp, log, recip, copy, max, less, fma, emit };

struct Instruction {
    Op op;
    std::int32_t out, a, b, c;
};

// How the law depends on a parameter: linear in theta or in exp(theta), the other linear parameters held or not.
enum class Dependence : std::int32_t { other, linear, exponential };

struct Tape {
    int n_parameter = 0, n_scalar = 0, n_column = 0, n_register = 0;
    bool log_link = false;                  // the residual is log(law) - y, where y is a logarithm, too
    std::vector<double> scalars;            // initial values: constants; the first n_parameter are parameters
    std::vector<Instruction> scalar_code;   // slots of scalars only
    std::vector<Instruction> vector_code;
    int level_end[3] = {0, 0, 0};
    std::int32_t value = 0;                 // slot of the law's value
    std::vector<std::int32_t> gradient;     // slots, n_parameter
    std::vector<Dependence> dependence;     // n_parameter
    int n_pair() const { return n_parameter * (n_parameter + 1) / 2; }  // entries of a lower triangle, stored by rows
};

struct Points {
    std::vector<const double*> columns;
    int n = 0;
};

// Scratch of one thread.
struct Workspace {
    std::vector<double> scalars, registers, work;
    std::vector<const double*> rows;  // the gradient's, on the current block
    explicit Workspace(const Tape& tape)
        : scalars(tape.scalars), registers(static_cast<std::size_t>(tape.n_register) * kBlock), work(3 * kBlock), rows(tape.n_parameter) {}
};

// Sets the parameters and everything that depends on them alone.
void set_parameters(const Tape& tape, const double* theta, Workspace& ws);

// Runs the vector code of one level on the points [first, first + n), n <= kBlock; the levels before must have run.
// weight [n] and hessian [n_pair] are for `emit`, which occurs at level 2 alone.
void run_level(const Tape& tape, const Points& points, int first, int n, int level, Workspace& ws,
               const double* weight = nullptr, double* hessian = nullptr);

// A slot's values on the current block; only registers and columns, never scalars.
inline const double* slot(const Tape& tape, const Points& points, int first, const Workspace& ws, std::int32_t s) {
    s -= tape.n_scalar;
    return s < tape.n_column ? points.columns[s] + first : ws.registers.data() + static_cast<std::size_t>(s - tape.n_column) * kBlock;
}

}  // namespace pyscaling
