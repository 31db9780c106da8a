// pyscaling._core: tapes and batches of fits, as numpy arrays in and out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "batch.hpp"

namespace py = pybind11;
using namespace pyscaling;

namespace {

using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Ints = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

constexpr int kMost = 1 << 20;  // of anything that a tape counts, so that sums and products of counts stay in range
constexpr int kMostParameters = 1 << 10;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

std::vector<Instruction> instructions(const Ints& code, int n_slot, int n_pair) {
    if (code.ndim() != 2 || code.shape(1) != 5) throw std::invalid_argument("code must have shape [n, 5]");
    std::vector<Instruction> out;
    for (py::ssize_t i = 0; i < code.shape(0); ++i) {
        const auto* row = code.data(i, 0);
        if (row[0] < 0 || row[0] > static_cast<int>(Op::emit)) throw std::invalid_argument("unknown instruction");
        const bool emits = row[0] == static_cast<int>(Op::emit);
        for (int k = 1; k < 5; ++k)
            if (row[k] < 0 || row[k] >= (k == 1 && emits ? n_pair : n_slot)) throw std::invalid_argument("slot out of range");
        const auto slot = [&](int k) { return static_cast<std::int32_t>(row[k]); };
        out.push_back({static_cast<Op>(row[0]), slot(1), slot(2), slot(3), slot(4)});
    }
    return out;
}

// Which operands of a vector instruction may be scalars is what run_level has loops for.
bool well_formed(const Tape& tape, const Instruction& i, bool second_order) {
    const bool a = i.a < tape.n_scalar, b = i.b < tape.n_scalar;
    if (i.op == Op::emit) return second_order && !a;
    if (i.out < tape.n_scalar + tape.n_column) return false;
    if (i.op == Op::copy) return a;
    if (i.op == Op::sub || i.op == Op::less) return !(a && b);
    return !a;
}

Tape make_tape(int n_parameter, std::vector<double> scalars, int n_column, int n_register, const Ints& scalar_code,
               const Ints& vector_code, std::array<int, 3> level_end, int value, std::vector<std::int32_t> gradient,
               const std::vector<int>& dependence, bool log_link) {
    require(n_parameter > 0 && n_parameter <= kMostParameters, "n_parameter must lie in [1, 1024]");
    require(scalars.size() >= static_cast<std::size_t>(n_parameter) && scalars.size() <= kMost,
            "scalars must begin with one entry per parameter and be at most 2^20");
    require(n_column >= 0 && n_column <= kMost && n_register >= 0 && n_register <= kMost,
            "n_column and n_register must lie in [0, 2^20]");
    Tape tape;
    tape.n_parameter = n_parameter;
    tape.n_scalar = static_cast<int>(scalars.size());
    tape.n_column = n_column;
    tape.n_register = n_register;
    tape.log_link = log_link;
    tape.scalars = std::move(scalars);
    const int n_slot = tape.n_scalar + n_column + n_register;
    tape.scalar_code = instructions(scalar_code, tape.n_scalar, 0);
    tape.vector_code = instructions(vector_code, n_slot, tape.n_pair());
    const int size = static_cast<int>(tape.vector_code.size());
    for (int k = 0; k < 3; ++k) {
        if (level_end[k] < (k ? level_end[k - 1] : 0) || level_end[k] > size) throw std::invalid_argument("malformed levels");
        tape.level_end[k] = level_end[k];
    }
    for (int k = 0; k < size; ++k)
        if (!well_formed(tape, tape.vector_code[k], k >= level_end[1])) throw std::invalid_argument("malformed vector instruction");
    tape.value = value;
    tape.gradient = std::move(gradient);
    if (static_cast<int>(tape.gradient.size()) != n_parameter) throw std::invalid_argument("one gradient slot per parameter is needed");
    require(static_cast<int>(dependence.size()) == n_parameter, "one dependence per parameter is needed");
    for (int d : dependence) {
        require(d >= 0 && d <= static_cast<int>(Dependence::exponential), "unknown dependence");
        tape.dependence.push_back(static_cast<Dependence>(d));
    }
    for (auto s : tape.gradient)
        if (s < tape.n_scalar || s >= n_slot) throw std::invalid_argument("gradient slot out of range");
    if (tape.value < tape.n_scalar || tape.value >= n_slot) throw std::invalid_argument("value slot out of range");
    return tape;
}

Points make_points(const Tape& tape, const Doubles& columns) {
    if (columns.ndim() != 2 || columns.shape(0) != tape.n_column) throw std::invalid_argument("columns must be [n_column, n]");
    require(columns.shape(1) > 0 && columns.shape(1) <= 1 << 30, "columns must hold 1 to 2^30 points");
    Points points;
    points.n = static_cast<int>(columns.shape(1));
    for (int k = 0; k < tape.n_column; ++k) points.columns.push_back(columns.data(k, 0));
    return points;
}

// Runs `work` on a thread of its own with the GIL released, and lets Ctrl-C stop it within 50 ms. Throws what it throws.
template <class Work>
void interruptible(std::atomic<bool>& stop, Work work) {
    std::mutex mutex;
    std::condition_variable ready;
    bool finished = false;
    bool interrupted = false;
    std::exception_ptr failure;
    {
        py::gil_scoped_release release;
        std::thread runner([&] {
            try {
                work();
            } catch (...) {
                failure = std::current_exception();
            }
            std::lock_guard<std::mutex> lock(mutex);
            finished = true;
            ready.notify_one();
        });
        std::unique_lock<std::mutex> lock(mutex);
        while (!ready.wait_for(lock, std::chrono::milliseconds(50), [&] { return finished; })) {
            lock.unlock();
            {
                py::gil_scoped_acquire acquire;
                if (PyErr_CheckSignals() != 0) interrupted = true;
            }
            if (interrupted) stop = true;
            lock.lock();
            if (interrupted) {
                ready.wait(lock, [&] { return finished; });
                break;
            }
        }
        lock.unlock();
        runner.join();
    }
    if (interrupted) throw py::error_already_set();
    if (failure) std::rethrow_exception(failure);
}

py::dict fit_batch(const Tape& tape, const Doubles& columns, const Doubles& y, const Doubles& weights, const Doubles& starts,
                   const Doubles& lower, const Doubles& upper, double delta, double spread, int n_resample,
                   const py::object& cluster, std::uint64_t seed, int threads, double over) {
    Batch batch;
    batch.tape = &tape;
    batch.points = make_points(tape, columns);
    const py::ssize_t n = batch.points.n, P = tape.n_parameter;
    require(n_resample >= 0, "n_resample must not be negative");
    batch.own_response = y.ndim() == 2;
    require(!batch.own_response || n_resample > 0, "y [n_resample, n] needs n_resample > 0");
    require(batch.own_response ? y.shape(0) == n_resample && y.shape(1) == n : y.ndim() == 1 && y.shape(0) == n,
            "y must be [n] or [n_resample, n]");
    require(weights.ndim() == 1 && weights.shape(0) == n, "weights must be [n]");
    require(starts.ndim() == 2 && starts.shape(1) == P && starts.shape(0) > 0 && starts.shape(0) <= std::numeric_limits<int>::max(),
            "starts must be [n_start, n_parameter]");
    require(lower.size() == P && upper.size() == P, "bounds must be [n_parameter]");
    for (py::ssize_t j = 0; j < P; ++j)
        require(lower.data()[j] <= upper.data()[j] && lower.data()[j] < INFINITY && upper.data()[j] > -INFINITY,
                "bounds must be numbers, the lower one not above the upper");
    // Stages of delta begin at the spread and shrink: from infinity they would never end.
    require(delta > 0 && spread > 0 && std::isfinite(spread), "delta must be positive, spread finite and positive");
    batch.y = y.data();
    batch.weights = weights.data();
    Ints clusters;
    batch.cluster = nullptr;
    if (!cluster.is_none()) {
        clusters = cluster.cast<Ints>();
        require(clusters.ndim() == 1 && clusters.shape(0) == n, "cluster must be [n]");
        for (py::ssize_t i = 0; i < n; ++i) {
            require(clusters.at(i) >= 0 && clusters.at(i) < n, "cluster numbers must lie in [0, n)");
            batch.n_cluster = std::max(batch.n_cluster, static_cast<int>(clusters.at(i)) + 1);
        }
        batch.cluster = clusters.data();
    }
    batch.starts = starts.data();
    batch.n_start = static_cast<int>(starts.shape(0));
    batch.n_resample = n_resample;
    batch.seed = seed;
    batch.lower = lower.data();
    batch.upper = upper.data();
    require(over > 0 && std::isfinite(over), "over must be finite and positive");
    batch.delta = delta;
    batch.over = over;
    batch.spread = spread;
    batch.threads = std::max(1, threads);

    const py::ssize_t rows = n_resample > 0 ? n_resample : starts.shape(0);
    py::array_t<double> theta({rows, P}), value(rows), gradient(rows);
    py::array_t<std::int32_t> iterations(rows), status(rows);
    const Results results{theta.mutable_data(), value.mutable_data(), gradient.mutable_data(), iterations.mutable_data(),
                          status.mutable_data()};
    std::atomic<bool> stop{false};
    batch.stop = &stop;
    interruptible(stop, [&] { run_batch(batch, results); });
    py::dict out;
    out["theta"] = theta;
    out["value"] = value;
    out["gradient"] = gradient;
    out["iterations"] = iterations;
    out["status"] = status;
    return out;
}

py::array_t<double> resample_counts(int n_cluster, int n_resample, std::uint64_t seed) {
    require(n_cluster > 0 && n_resample >= 0, "n_cluster must be positive, n_resample not negative");
    py::array_t<double> out({n_resample, n_cluster});
    std::vector<double> counts(n_cluster);
    for (int row = 0; row < n_resample; ++row) {
        draw_counts(seed, row, counts);
        std::copy(counts.begin(), counts.end(), out.mutable_data(row, 0));
    }
    return out;
}

py::tuple evaluate_once(const Tape& tape, const Doubles& columns, const Doubles& y, const Doubles& weights, const Doubles& theta,
                        double delta, int level, int repeat, double over) {
    const Points points = make_points(tape, columns);
    require(y.size() == points.n && weights.size() == points.n && theta.size() == tape.n_parameter, "sizes do not match");
    require(level >= 0 && level <= 2, "level must be 0, 1 or 2");
    require(delta > 0 && repeat > 0, "delta and repeat must be positive");
    Workspace ws(tape);
    Evaluation out(tape.n_parameter, false);
    for (int i = 0; i < repeat; ++i) evaluate(tape, points, y.data(), weights.data(), theta.data(), delta, over, level, ws, out);
    return py::make_tuple(out.value, py::array_t<double>(out.gradient.size(), out.gradient.data()),
                          py::array_t<double>(out.curvature.size(), out.curvature.data()));
}

py::tuple jacobian(const Tape& tape, const Doubles& columns, const Doubles& theta) {
    const Points points = make_points(tape, columns);
    require(theta.size() == tape.n_parameter, "theta must be [n_parameter]");
    Workspace ws(tape);
    set_parameters(tape, theta.data(), ws);
    py::array_t<double> value(points.n), rows({static_cast<py::ssize_t>(tape.n_parameter), static_cast<py::ssize_t>(points.n)});
    double factor[kBlock];  // of the chain rule through the link
    for (int first = 0; first < points.n; first += kBlock) {
        const int n = std::min(kBlock, points.n - first);
        run_level(tape, points, first, n, 0, ws);
        const double* law = slot(tape, points, first, ws, tape.value);
        double* out = value.mutable_data(first);
        for (int p = 0; p < n; ++p) {
            out[p] = tape.log_link ? std::log(law[p]) : law[p];
            factor[p] = tape.log_link ? 1.0 / law[p] : 1.0;
        }
        run_level(tape, points, first, n, 1, ws);
        for (int j = 0; j < tape.n_parameter; ++j) {
            const double* row = slot(tape, points, first, ws, tape.gradient[j]);
            for (int p = 0; p < n; ++p) *rows.mutable_data(j, first + p) = row[p] * factor[p];
        }
    }
    return py::make_tuple(value, rows);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "Batched fitting of scaling laws; the Python side is pyscaling.fitting.";
    py::class_<Tape>(m, "Tape")
        .def(py::init(&make_tape), py::arg("n_parameter"), py::arg("scalars"), py::arg("n_column"), py::arg("n_register"),
             py::arg("scalar_code"), py::arg("vector_code"), py::arg("level_end"), py::arg("value"), py::arg("gradient"),
             py::arg("dependence"), py::arg("log_link"))
        .def_readonly("n_parameter", &Tape::n_parameter)
        .def_readonly("n_register", &Tape::n_register)
        .def_property_readonly("dependence", [](const Tape& tape) {
            std::vector<int> out;
            for (Dependence d : tape.dependence) out.push_back(static_cast<int>(d));
            return out;
        });
    m.def("fit_batch", &fit_batch, py::arg("tape"), py::arg("columns"), py::arg("y"), py::arg("weights"), py::arg("starts"),
          py::arg("lower"), py::arg("upper"), py::arg("delta"), py::arg("spread"), py::arg("n_resample") = 0,
          py::arg("cluster") = py::none(), py::arg("seed") = 0, py::arg("threads") = 1, py::arg("over") = 1.0);
    m.def("resample_counts", &resample_counts, py::arg("n_cluster"), py::arg("n_resample"), py::arg("seed") = 0);
    m.def("evaluate", &evaluate_once, py::arg("tape"), py::arg("columns"), py::arg("y"), py::arg("weights"), py::arg("theta"),
          py::arg("delta"), py::arg("level") = 1, py::arg("repeat") = 1, py::arg("over") = 1.0);
    m.def("jacobian", &jacobian, py::arg("tape"), py::arg("columns"), py::arg("theta"));
}
