#include "server/lent.hpp"

#include <unordered_set>

namespace drust::server {
namespace {

class Walk {
 public:
  Walk(heap::Heap& heap, Peers& peers, ServerId gone) : heap_(heap), peers_(peers), silent_{gone} {}

  // As Lent, and `now` only if that is certainly the block that was lent.
  Lent look(const GlobalPointer& lent, bool is_root) {
    if (silent_.contains(lent.address.server()) || !seen_.insert(lent.address.raw()).second) return {};
    const Result<Peers::Table> read = peers_.read_table(lent);
    if (!read.ok()) {
      // One wait for a silent server is enough.
      if (read.status().code() != Code::not_found) silent_.insert(lent.address.server());
      return {};
    }
    const Peers::Table& table = read.value();
    if (table.now.colour != lent.colour) {
      const bool is_it = table.before == static_cast<std::uint32_t>(lent.colour) &&
                         table.now.extent_bytes == lent.extent_bytes;
      return {is_root || is_it ? table.now : GlobalPointer{}, true};
    }
    if (table.is_being_written) return {end_writing(table.now), true};
    return look_below(table);
  }

 private:
  // Its writer died before it drew a colour for it. Copies of the version before may be anywhere.
  GlobalPointer end_writing(const GlobalPointer& torn) {
    if (!heap_.partition().is_local(torn.address)) return torn;  // its own server's reaper does
    const Result<GlobalPointer> fresh = heap_.recolour(torn);
    return fresh.ok() ? fresh.value() : torn;
  }

  Lent look_below(const Peers::Table& table) {
    heap::Partition& partition = heap_.partition();
    Lent found{table.now, false};
    bool is_corrected = false;
    for (std::size_t index = 0; index < table.children.size(); ++index) {
      const heap::ChildPointer& child = table.children[index];
      if (child.address == 0 || (child.flags & heap::ChildPointer::kBorrowed) != 0) continue;
      const Lent below = look(child.pointer(), false);
      if (!below.is_written) continue;
      found.is_written = true;
      const bool is_all_right = below.now.is_null() || below.now.colour == child.colour;
      if (is_all_right || !partition.is_local(table.now.address)) continue;
      const Result<heap::Block> block = partition.find(table.now.address, table.now.colour);
      if (!block.ok()) continue;
      block.value().children()[index].colour = below.now.colour;
      is_corrected = true;
    }
    // Copies of the table as it was may be anywhere.
    if (is_corrected) {
      if (const auto fresh = heap_.recolour(table.now); fresh.ok()) found.now = fresh.value();
    }
    return found;
  }

  heap::Heap& heap_;
  Peers& peers_;
  std::unordered_set<ServerId> silent_;
  std::unordered_set<std::uint64_t> seen_;
};

}  // namespace

Lent look_at_lent(heap::Heap& heap, Peers& peers, const GlobalPointer& lent, ServerId gone) {
  return Walk(heap, peers, gone).look(lent, true);
}

}  // namespace drust::server
