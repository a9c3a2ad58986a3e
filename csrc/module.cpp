// taut._C: what Python may ask of the native CPU library. No torch types cross here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"
#include "cpu/encoder_layer.h"
#include "cpu/probe.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts, CPU instruction sets, and which kernel variant each op last ran.";
  m.attr("version") = TAUT_VERSION;
  m.attr("compiler") = TAUT_COMPILER;
  m.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (taut::Isa isa : taut::available_isas()) names.emplace_back(taut::isa_name(isa));
        return names;
      },
      "Instruction sets that this build holds and this machine runs, lowest first.");
  m.def(
      "active_isa", [] { return std::string(taut::isa_name(taut::active_isa())); },
      "The instruction set that CPU kernels use now.");
  m.def("set_active_isa", &taut::set_active_isa, pybind11::arg("name"),
        "Use another available instruction set; ValueError for one that is not available.");
  m.def(
      "last_variants",
      [] {
        pybind11::dict variants;
        for (const auto& [op, variant] : taut::last_variants()) variants[op.c_str()] = variant;
        return variants;
      },
      "{op: 'isa' or 'isa/path'} of each op's last call on the native CPU library.");
  m.def("forget_layer", &taut::forget_layer, pybind11::arg("number"),
        "Lets go of what the op keep_layer keeps under this number.");
  m.def(
      "probe", &taut::probe, pybind11::arg("kind"), pybind11::arg("units"),
      pybind11::call_guard<pybind11::gil_scoped_release>(),
      "Runs `units` blocks of fp32, bf16, int8 or popcount arithmetic with the active instruction "
      "set on one thread; returns the operations of one block.");
}
