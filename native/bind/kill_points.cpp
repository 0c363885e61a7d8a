// _core.kill_points: where a test may end a process (base/kill_point.hpp), by name.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>

#include "base/kill_point.hpp"
#include "bind/pointer.hpp"

namespace drust::bind {
namespace {

constexpr std::array<std::string_view, 6> kActionNames = {"none", "kill", "stop", "exit", "segfault", "abort"};

std::vector<std::string> names(std::span<const std::string_view> all) { return {all.begin(), all.end()}; }

std::uint32_t index_in(std::span<const std::string_view> all, const std::string& name) {
  for (std::uint32_t index = 0; index < all.size(); ++index) {
    if (all[index] == name) return index;
  }
  throw nb::value_error(("there is no " + name).c_str());
}

// This process dies at the `nth` passing, from now, of the point of that name; of any point for "".
void arm(const std::string& name, std::uint32_t nth, const std::string& action) {
  const std::uint32_t point = name.empty() ? kAnyKillPoint : index_in(kKillPoints, name);
  if (nth == 0) throw nb::value_error("the first passing is number 1");
  arm_kill_point(point, nth, static_cast<KillAction>(index_in(kActionNames, action)));
}

}  // namespace

void register_kill_points(nb::module_& module) {
  const Status mapped = map_kill_board();
  if (!mapped.ok()) throw std::runtime_error("DRUST_KILL_BOARD: " + mapped.detail());
  module.def("kill_points", [] { return names(kKillPoints); });
  module.def("kill_actions", [] { return names(kActionNames); });
  module.def("arm_kill_point", &arm, nb::arg("name"), nb::arg("nth"), nb::arg("action"));
  module.attr("KILL_BOARD_BYTES") = kKillBoardBytes;
  module.attr("KILL_POINTS_MAX") = kKillPointsMax;
  module.attr("KILL_ROWS") = kKillRows;
  module.attr("ANY_KILL_POINT") = kAnyKillPoint;
}

}  // namespace drust::bind
