#include "heap/memory_room.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <string_view>
#include <system_error>

#include "base/limits.hpp"
#include "base/small_file.hpp"

namespace drust::heap {
namespace {

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

std::optional<std::uint64_t> number_of(std::string_view text) {
  std::uint64_t value = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc()) return std::nullopt;
  return value;
}

std::optional<std::uint64_t> number_in(const std::string& path) {
  return number_of(text_of(path));  // nothing: missing, or "max"
}

// Takes the first line off `text`; nothing if there is none.
std::optional<std::string_view> next_line(std::string_view& text) {
  if (text.empty()) return std::nullopt;
  const std::size_t end = std::min(text.find('\n'), text.size());
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return line;
}

// The value of a line "name value" or "name: value kB" of a file of such lines.
std::optional<std::uint64_t> field_in(const std::string& path, std::string_view name) {
  const std::string text = text_of(path);
  std::string_view left = text;
  while (const auto line = next_line(left)) {
    if (!line->starts_with(name) || line->size() == name.size()) continue;
    if ((*line)[name.size()] != ' ' && (*line)[name.size()] != ':') continue;
    const std::size_t digits = line->find_first_of("0123456789", name.size());
    if (digits == std::string_view::npos) return std::nullopt;
    return number_of(line->substr(digits));
  }
  return std::nullopt;
}

struct Version {
  const char* limit;
  const char* usage;
  const char* inactive;
  const char* active;
};
constexpr Version kTwo = {"/memory.max", "/memory.current", "inactive_file", "active_file"};
constexpr Version kOne = {"/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file",
                          "total_active_file"};

std::uint64_t remainder_of(const std::string& folder, const Version& version) {
  const auto limit = number_in(folder + version.limit);
  const auto usage = number_in(folder + version.usage);
  if (!limit || !usage || *limit >= (1ULL << 62)) return kUnlimited;
  const std::string stat = folder + "/memory.stat";
  const std::uint64_t cache =
      field_in(stat, version.inactive).value_or(0) + field_in(stat, version.active).value_or(0);
  const std::uint64_t held = *usage - std::min(*usage, cache);
  return *limit - std::min(*limit, held);
}

// The least remainder from `path` up to the root. A path that is not there (a container sees the host's path
// but its own tree) ends at the root, which is then the container's own group.
std::uint64_t remainder_along(const std::string& root, std::string path, const Version& version) {
  std::uint64_t least = kUnlimited;
  while (true) {
    least = std::min(least, remainder_of(root + path, version));
    if (path.empty()) return least;
    path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
}

std::uint64_t cgroup_room(const RoomSources& sources) {
  const std::string text = text_of(sources.self_cgroup);
  std::string_view left = text;
  std::uint64_t least = kUnlimited;
  while (const auto line = next_line(left)) {
    const std::size_t first = line->find(':');
    const std::size_t second = first == std::string_view::npos ? first : line->find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string controllers = "," + std::string(line->substr(first + 1, second - first - 1)) + ",";
    std::string path(line->substr(second + 1));
    if (path == "/") path.clear();
    if (controllers == ",,") {
      least = std::min(least, remainder_along(sources.cgroup_root, path, kTwo));
    } else if (controllers.find(",memory,") != std::string::npos) {
      least = std::min(least, remainder_along(sources.cgroup_root + "/memory", path, kOne));
    }
  }
  return least;
}

}  // namespace

std::uint64_t memory_room_bytes(const RoomSources& sources) {
  const auto total_kib = field_in(sources.meminfo, "MemTotal");
  const auto available_kib = field_in(sources.meminfo, "MemAvailable");
  std::uint64_t room = cgroup_room(sources);
  std::uint64_t reserve = kMemoryReserveBytesMax;
  if (total_kib) reserve = std::min(reserve, *total_kib * 1024 / 32);
  if (available_kib) room = std::min(room, *available_kib * 1024);
  if (room == kUnlimited) return room;
  reserve = std::min(reserve, room / 8);  // a small container keeps most of what it has
  return room - reserve;
}

}  // namespace drust::heap
