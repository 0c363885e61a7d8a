// How much memory this process may still have backed: the machine's available memory or its control group's
// remainder, whichever is less, above a reserve for everybody else.
//
// A memfd has no limit of its own, and a container's limit kills instead of failing, so it is asked before
// the fact. Clean page cache counts as available, as the kernel itself counts it. Both control group versions
// are read, and every ancestor that can be seen, because the limit of a container often stands there.
#pragma once

#include <cstdint>
#include <string>

namespace drust::heap {

struct RoomSources {  // replaced in tests
  std::string meminfo = "/proc/meminfo";
  std::string self_cgroup = "/proc/self/cgroup";
  std::string cgroup_root = "/sys/fs/cgroup";
};

// Reads about ten small files: 50-100 us. What cannot be read limits nothing.
[[nodiscard]] std::uint64_t memory_room_bytes(const RoomSources& sources = {});

}  // namespace drust::heap
