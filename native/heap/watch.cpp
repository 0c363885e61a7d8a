#include "heap/watch.hpp"

#include <algorithm>

namespace drust::heap {

void Watch::note_all(const Block& block) const noexcept {
  for (const ChildPointer& child : block.children()) {
    if (child.address == 0) continue;
    // The place first: of one who dies in between nobody has heard, so what named the child before is there still.
    const std::uint64_t place = head().next.fetch_add(1);
    if (place < kRows) row(place).store(child.address);
  }
}

std::uint64_t Watch::open() const noexcept {
  const std::uint64_t ticket = head().tickets.fetch_add(1) + 1;
  head().next.store(0);
  head().is_open.store(ticket, std::memory_order_seq_cst);
  return ticket;
}

std::optional<std::vector<Address>> Watch::close(std::uint64_t ticket) const {
  if (ticket == 0 || head().is_open.load() != ticket) return std::nullopt;
  const std::uint64_t noted = head().next.load();
  std::optional<std::vector<Address>> found;
  if (noted <= kRows && head().is_blind.load() == 0) {
    found.emplace();
    for (std::uint64_t place = 0; place < noted; ++place) found->emplace_back(row(place).load());
  }
  head().is_open.store(0);
  return found;
}

}  // namespace drust::heap
