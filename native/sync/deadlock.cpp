#include "sync/deadlock.hpp"

#include <algorithm>
#include <optional>

namespace drust::sync {
namespace {

constexpr std::size_t kLinksMax = 64;

std::string read_note(const heap::Partition& partition, std::uint64_t offset_bytes) {
  if (offset_bytes == 0) return {};
  const Result<heap::Block> found = partition.find(Address::make(partition.server(), offset_bytes), kNoColour);
  if (!found.ok() || found.value().header().codec != kNoteCodec) return {};
  const Colour colour = found.value().header().state.load();
  const auto bytes = found.value().buffer(0);
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return found.value().header().state.load(std::memory_order_acquire) == colour ? text : std::string();
}

// What a thread waits for, without who keeps it waiting.
std::optional<Wait> waits_for(const heap::Partition& partition, Who who, std::uint64_t token) {
  std::optional<Wait> found;
  partition.each_live_block([&](const heap::BlockInfo& block) {
    if (found || block.codec != heap::kSharedCodec) return;
    const LockWords* mutex = find<LockWords>(partition, block.pointer);
    if (mutex == nullptr) return;
    if (const auto place = mutex->line.find(who, token))
      found = Wait{block.pointer, read_note(partition, mutex->line.note(*place)), {}};
  });
  return found;
}

// From what `waiter` waits for to `last`, depth first: of a writer, every reader keeps it waiting.
bool walk(const heap::Partition& partition, const GlobalPointer& lock, const Readers::Reading& waiter,
          const Readers::Reading& last, std::vector<Link>& links) {
  const LockWords* words = find<LockWords>(partition, lock);
  if (words == nullptr || links.size() == kLinksMax) return false;
  for (std::uint32_t index = 0;; ++index) {
    const auto by = blocker(*words, waiter.who, waiter.token, index);
    if (!by) return false;
    links.push_back({lock, by->who, by->token, {}});
    if (by->who == last.who && by->token == last.token) return true;
    if (std::optional<Wait> next = waits_for(partition, by->who, by->token)) {
      links.back().note = std::move(next->note);
      if (walk(partition, next->lock, *by, last, links)) return true;
    }
    links.pop_back();
  }
}

std::vector<Link> walk(const heap::Partition& partition, const GlobalPointer& first, Who who, std::uint64_t token) {
  std::vector<Link> links;
  return walk(partition, first, {who, token}, {who, token}, links) ? links : std::vector<Link>();
}

}  // namespace

std::optional<Wait> find_wait(const heap::Partition& partition, Who who, std::uint64_t token) {
  std::optional<Wait> wait = waits_for(partition, who, token);
  const LockWords* words = wait ? find<LockWords>(partition, wait->lock) : nullptr;
  if (words == nullptr) return std::nullopt;
  for (std::uint32_t index = 0; index < kLinksMax; ++index) {
    const auto by = blocker(*words, who, token, index);
    if (!by) break;
    wait->by.push_back(*by);
  }
  return wait;
}

std::vector<Link> find_cycle(const heap::Partition& partition, const GlobalPointer& lock, Who who,
                             std::uint64_t token) {
  std::vector<Link> links = walk(partition, lock, who, token);
  if (links.empty()) return links;
  const std::vector<Link> again = walk(partition, lock, who, token);
  const bool is_same = std::ranges::equal(links, again, [](const Link& a, const Link& b) {
    return a.lock == b.lock && a.holder == b.holder && a.token == b.token;
  });
  return is_same ? links : std::vector<Link>();
}

void set_note(LockWords& mutex, std::uint32_t place, const GlobalPointer& note) noexcept {
  mutex.line.set_note(place, note.is_null() ? 0 : note.address.offset_bytes());
}

}  // namespace drust::sync
