#include "sync/deadlock.hpp"

#include <algorithm>
#include <optional>

namespace drust::sync {
namespace {

constexpr std::size_t kLinksMax = 64;

struct Waits {
  GlobalPointer lock;
  std::string note;
};

std::string read_note(const heap::Partition& partition, std::uint64_t offset_bytes) {
  if (offset_bytes == 0) return {};
  const Result<heap::Block> found = partition.find(Address::make(partition.server(), offset_bytes), kNoColour);
  if (!found.ok() || found.value().header().codec != kNoteCodec) return {};
  const Colour colour = found.value().header().state.load();
  const auto bytes = found.value().buffer(0);
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return found.value().header().state.load(std::memory_order_acquire) == colour ? text : std::string();
}

// What a thread waits for.
std::optional<Waits> waits_for(const heap::Partition& partition, Who who, std::uint64_t token) {
  std::optional<Waits> found;
  partition.each_live_block([&](const heap::BlockInfo& block) {
    if (found || block.codec != heap::kSharedCodec) return;
    const MutexWords* mutex = find<MutexWords>(partition, block.pointer);
    if (mutex == nullptr) return;
    if (const auto place = mutex->line.find(who, token))
      found = Waits{block.pointer, read_note(partition, mutex->line.note(*place))};
  });
  return found;
}

std::vector<Link> walk(const heap::Partition& partition, const GlobalPointer& first, Who who, std::uint64_t token) {
  std::vector<Link> links;
  GlobalPointer lock = first;
  while (links.size() < kLinksMax) {
    const MutexWords* mutex = find<MutexWords>(partition, lock);
    if (mutex == nullptr) return {};
    const LockWord word = look(*mutex);
    const std::uint64_t holding = mutex->token.load();
    if (word.who().is_nobody() || word.place() || holding == 0 || look(*mutex) != word) return {};
    links.push_back({lock, word.who(), holding, {}});
    if (word.who() == who && holding == token) return links;
    std::optional<Waits> next = waits_for(partition, word.who(), holding);
    if (!next) return {};
    links.back().note = std::move(next->note);
    lock = next->lock;
  }
  return {};
}

}  // namespace

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

void set_note(MutexWords& mutex, std::uint32_t place, const GlobalPointer& note) noexcept {
  mutex.line.set_note(place, note.is_null() ? 0 : note.address.offset_bytes());
}

}  // namespace drust::sync
