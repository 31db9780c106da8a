// A law as a flat list of instructions over blocks of points.
//
// Operands are slots: [0, n_scalar) scalars (constants, parameters and what depends on them alone), then n_column data
// columns, then registers, one block of points each. The vector code is cut into three levels: after `level_end[0]`
// instructions the value is known, after [1] the gradient, after [2] the second derivatives.
#pragma once

#include <cstdint>
#include <vector>

namespace pyscaling {

constexpr int kBlock = 128;  // points; the registers of a gradient (about 20) then stay within a 48 KiB L1 cache

enum class Op : std::int32_t { add, sub, mul, exp, log, recip, copy, max, less };  // less: 1 where a < b, else 0

struct Instruction {
    Op op;
    std::int32_t out, a, b;
};

struct Tape {
    int n_parameter = 0, n_scalar = 0, n_column = 0, n_register = 0;
    std::vector<double> scalars;            // initial values: constants; the first n_parameter are parameters
    std::vector<Instruction> scalar_code;   // slots of scalars only
    std::vector<Instruction> vector_code;
    int level_end[3] = {0, 0, 0};
    std::int32_t value = 0;                 // slot of the law's value
    std::vector<std::int32_t> gradient;     // slots, n_parameter
    std::vector<std::int32_t> hessian;      // slots of the lower triangle by rows, n_parameter (n_parameter + 1) / 2
};

struct Points {
    std::vector<const double*> columns;
    int n = 0;
};

// Scratch of one thread.
struct Workspace {
    std::vector<double> scalars, registers, work;
    explicit Workspace(const Tape& tape)
        : scalars(tape.scalars), registers(static_cast<std::size_t>(tape.n_register) * kBlock), work(8 * kBlock) {}
};

// Sets the parameters and everything that depends on them alone.
void set_parameters(const Tape& tape, const double* theta, Workspace& ws);

// Runs the vector code up to `level` on the points [first, first + n), n <= kBlock.
void run_block(const Tape& tape, const Points& points, int first, int n, int level, Workspace& ws);

// A slot's values on the current block; only registers and columns, never scalars.
inline const double* slot(const Tape& tape, const Points& points, int first, const Workspace& ws, std::int32_t s) {
    s -= tape.n_scalar;
    return s < tape.n_column ? points.columns[s] + first : ws.registers.data() + static_cast<std::size_t>(s - tape.n_column) * kBlock;
}

}  // namespace pyscaling
