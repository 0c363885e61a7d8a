#include "heap/arena.hpp"

#include <algorithm>
#include <bit>

#include "base/ensure.hpp"
#include "base/kill_point.hpp"

namespace drust::heap {
namespace {

// Looking through all spans for hinted blocks must be paid for by blocks found: one in this many spans.
constexpr std::uint64_t kSpansPerHint = 16;

}  // namespace

Arena::Arena(Segments& segments, std::byte* base, ProcessId process)
    : segments_(segments),
      base_(base),
      process_(process),
      by_head_(static_cast<Span**>(std::calloc(segments.count(), sizeof(Span*)))) {
  ensure(by_head_ != nullptr, "no memory for the table of spans");
}

std::atomic<std::uint64_t>& Arena::state_of(const Span& span, std::uint32_t index) const noexcept {
  const std::uint64_t offset =
      span.offset_bytes + std::uint64_t{index} * kClasses[span.size_class].block_bytes;
  return reinterpret_cast<BlockHeader*>(base_ + offset)->state;
}

Result<std::uint64_t> Arena::take(std::uint32_t size_class) {
  const std::lock_guard lock(mutex_);
  Class& mine = classes_[size_class];
  Span* span = mine.current;
  if (span == nullptr || span->free == 0) [[unlikely]] {
    Result<Span*> found = span_with_room(size_class);
    if (!found.ok()) return found.status();
    span = mine.current = found.value();
  }
  while (span->bits[span->word] == 0) span->word = (span->word + 1) % (kSpanBlocksMax / 64);
  const auto bit = static_cast<std::uint32_t>(std::countr_zero(span->bits[span->word]));
  const std::uint32_t index = span->word * 64 + bit;
  span->bits[span->word] &= ~(1ULL << bit);
  if (span->free == span->blocks) --mine.empty;
  --span->free;
  const std::uint64_t offset = span->offset_bytes + std::uint64_t{index} * kClasses[size_class].block_bytes;
  auto& header = *reinterpret_cast<BlockHeader*>(base_ + offset);
  kill_point("heap.take.before");
  // Under the mutex: nobody else moves a state away from 0, and enter() must not see this one free again.
  ensure(header.state.load(std::memory_order_acquire) == kFree, "a block in a free list is not free");
  header.owner.store(owner_word(OwnerKind::process, process_), std::memory_order_relaxed);
  header.flags.store(0, std::memory_order_relaxed);  // before it is filling: a reaper reads them from then on
  header.state.store(filling(process_), std::memory_order_release);
  kill_point("heap.take.after");
  return offset;
}

Result<Arena::Span*> Arena::span_with_room(std::uint32_t size_class) {
  Class& mine = classes_[size_class];
  if (mine.partial.empty() && segments_.pending_hints(process_) >= 1 + spans_.size() / kSpansPerHint)
    collect_hinted();
  if (mine.current != nullptr && mine.current->free > 0) return mine.current;
  if (mine.partial.empty()) return claim_span(size_class);
  Span* span = mine.partial.back();
  unlist(*span);
  return span;
}

Result<Arena::Span*> Arena::claim_span(std::uint32_t size_class) {
  const SizeClass& shape = kClasses[size_class];
  const Result<std::uint64_t> head = segments_.claim(process_, SegmentKind::span, size_class, shape.segments);
  if (!head.ok()) return head.status();
  // Segments that were used before are full of old bytes, some of which look like colours.
  const std::uint64_t start = segments_.offset_of(head.value());
  for (std::uint32_t index = 0; index < shape.blocks; ++index) {
    auto& header = *reinterpret_cast<BlockHeader*>(base_ + start + std::uint64_t{index} * shape.block_bytes);
    header.state.store(kFree, std::memory_order_relaxed);
    header.capacity_bytes = shape.block_bytes;
  }
  segments_.settle(head.value());
  Span* span = make_span(head.value(), size_class);
  for (std::uint32_t index = 0; index < shape.blocks; ++index) span->bits[index / 64] |= 1ULL << (index % 64);
  span->free = shape.blocks;
  ++classes_[size_class].empty;
  return span;
}

Arena::Span* Arena::make_span(std::uint64_t head, std::uint32_t size_class) {
  auto owned = std::make_unique<Span>();
  Span* span = owned.get();
  span->head = head;
  span->offset_bytes = segments_.offset_of(head);
  span->size_class = size_class;
  span->blocks = kClasses[size_class].blocks;
  span->place = spans_.size();
  spans_.push_back(std::move(owned));
  by_head_[head] = span;
  return span;
}

void Arena::list(Span& span) {
  Class& mine = classes_[span.size_class];
  if (span.listed != kUnlisted || mine.current == &span) return;
  span.listed = mine.partial.size();
  mine.partial.push_back(&span);
}

void Arena::unlist(Span& span) noexcept {
  if (span.listed == kUnlisted) return;
  std::vector<Span*>& partial = classes_[span.size_class].partial;
  partial[span.listed] = partial.back();
  partial[span.listed]->listed = span.listed;
  partial.pop_back();
  span.listed = kUnlisted;
}

void Arena::set_free(Span& span, std::uint32_t index) {
  std::uint64_t& word = span.bits[index / 64];
  const std::uint64_t bit = 1ULL << (index % 64);
  if ((word & bit) != 0) return;
  word |= bit;
  ++span.free;
  span.word = index / 64;  // what was used last is in the cache
  list(span);
  if (span.free == span.blocks) ++classes_[span.size_class].empty;
}

void Arena::enter(const Place& place) noexcept {
  const std::lock_guard lock(mutex_);
  Span* span = by_head_[place.head];
  if (span == nullptr || span->size_class != place.entry.size_class()) return;  // given back meanwhile
  const std::uint32_t index = kClasses[span->size_class].index_of(place.offset_bytes - span->offset_bytes);
  if (index >= span->blocks || state_of(*span, index).load(std::memory_order_acquire) != kFree) return;
  set_free(*span, index);
  // One empty span a class stays, so that a block allocated and freed in turn does not claim a span each
  // time.
  if (span->free == span->blocks && classes_[span->size_class].empty > 1) drop(*span);
}

void Arena::read_headers(Span& span) {
  for (std::uint32_t index = 0; index < span.blocks; ++index) {
    if (state_of(span, index).load(std::memory_order_acquire) == kFree) set_free(span, index);
  }
}

void Arena::collect_hinted() {
  segments_.clear_pending_hints(process_);
  for (std::size_t place = spans_.size(); place > 0; --place) {
    Span& span = *spans_[place - 1];  // drop() moves the last one here, which has been looked at already
    if (segments_.take_hints(span.head) == 0) continue;
    read_headers(span);
    if (span.free == span.blocks && classes_[span.size_class].empty > 1) drop(span);
  }
}

void Arena::add_span(std::uint64_t head, SegmentEntry entry) {
  const std::lock_guard lock(mutex_);
  ensure(by_head_[head] == nullptr, "a span adopted twice");
  Span& span = *make_span(head, entry.size_class());
  read_headers(span);
  if (span.free == span.blocks) drop(span);
}

std::uint64_t Arena::reclaim() {
  const std::lock_guard lock(mutex_);
  std::uint64_t given = 0;
  segments_.clear_pending_hints(process_);
  for (std::size_t place = spans_.size(); place > 0; --place) {
    Span& span = *spans_[place - 1];
    static_cast<void>(segments_.take_hints(span.head));
    read_headers(span);
    if (span.free < span.blocks) continue;
    given += kClasses[span.size_class].segments * kSegmentBytes;
    drop(span);
  }
  return given;
}

void Arena::drop(Span& span) {
  Class& mine = classes_[span.size_class];
  unlist(span);
  if (mine.current == &span) mine.current = nullptr;
  --mine.empty;
  by_head_[span.head] = nullptr;
  ensure(segments_.entry(span.head).owner() == process_,
         "a heap was used after its process slot was given up");
  segments_.take(span.head, process_);
  segments_.give_back(span.head, process_);
  const std::size_t place = span.place;
  std::swap(spans_[place], spans_.back());
  spans_[place]->place = place;
  spans_.pop_back();
}

}  // namespace drust::heap
