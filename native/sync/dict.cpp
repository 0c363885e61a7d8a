#include "sync/dict.hpp"

#include <sched.h>

#include <algorithm>
#include <thread>

#include "base/kill_point.hpp"

namespace drust::sync {

std::optional<Item> take_item(std::span<const std::byte>& bytes) noexcept {
  Item item;
  if (bytes.size() < sizeof item.head) return std::nullopt;
  std::memcpy(&item.head, bytes.data(), sizeof item.head);
  if (bytes_of(item.head) > bytes.size()) return std::nullopt;
  item.key = bytes.subspan(sizeof item.head, item.head.key_bytes);
  item.value = bytes.subspan(sizeof item.head + item.head.key_bytes, item.head.value_bytes);
  bytes = bytes.subspan(bytes_of(item.head));
  return item;
}

void append_item(std::vector<std::byte>& bytes, const Item& item) {
  const std::size_t start = bytes.size();
  bytes.resize(start + bytes_of(item.head));
  std::memcpy(bytes.data() + start, &item.head, sizeof item.head);
  std::copy(item.key.begin(), item.key.end(), bytes.begin() + static_cast<std::ptrdiff_t>(start + sizeof item.head));
  std::copy(item.value.begin(), item.value.end(),
            bytes.begin() + static_cast<std::ptrdiff_t>(start + sizeof item.head + item.key.size()));
}

// -- reading

std::uint32_t Shard::index(const KeyHash& hash, std::uint32_t level) noexcept {
  if (level == 0) return static_cast<std::uint32_t>(hash.high >> (64 - ShardWords::kRootBits));
  const std::uint32_t last_bit = ShardWords::kRootBits + level * kNodeBits;  // of 128, from the top
  const std::uint64_t half = last_bit <= 64 ? hash.high : hash.low;
  return static_cast<std::uint32_t>(half >> ((128 - last_bit) % 64)) & ((1U << kNodeBits) - 1);
}

std::span<Word> Shard::cells_of(std::uint64_t node) const noexcept {
  const heap::Block block(heap_.partition().writable(address_of(node).offset_bytes()));
  return {reinterpret_cast<Word*>(block.meta().data()), 1U << kNodeBits};
}

GlobalPointer Shard::pointer_of(std::uint64_t cell) const noexcept {
  if (is_nothing(cell)) return {};
  const Result<heap::Block> found = heap_.partition().find(address_of(cell), kNoColour);
  if (!found.ok()) return {};
  const heap::BlockHeader& header = found.value().header();
  return {address_of(cell), header.state.load(), header.extent_bytes};
}

Shard::Spot Shard::walk(const KeyHash& hash) const noexcept {
  Spot spot;
  spot.cell = &words_.cells[index(hash, 0)];
  spot.seen = spot.cell->load();
  while (is_node(spot.seen)) {
    ++spot.level;
    spot.cell = &cells_of(spot.seen)[index(hash, spot.level)];
    spot.seen = spot.cell->load();
  }
  return spot;
}

// The bytes of the entry were read with plain loads: they must not move below the load of the cell.
bool Shard::is_unchanged(const Spot& spot) noexcept {
#ifndef __SANITIZE_THREAD__  // which does not know fences
  std::atomic_thread_fence(std::memory_order_acquire);
#endif
  return spot.cell->load() == spot.seen;
}

Shard::Met Shard::read_head(const Spot& spot, ItemHead& head) const noexcept {
  if (is_nothing(spot.seen)) return Met::nothing;
  const Result<heap::Block> found = heap_.partition().find(address_of(spot.seen), kNoColour);
  if (!found.ok()) return Met::changed;
  const Colour version = found.value().header().state.load();
  std::memcpy(&head, found.value().start() + sizeof(heap::BlockHeader), sizeof head);
  head.version = version;
  return is_unchanged(spot) ? Met::entry : Met::changed;
}

bool Shard::copy_out(const Spot& spot, const ItemHead& head, std::byte* to) const noexcept {
  const std::byte* start = heap_.partition().readable(address_of(spot.seen).offset_bytes());
  std::memcpy(to, start + sizeof(heap::BlockHeader) + sizeof head, std::size_t{head.key_bytes} + head.value_bytes);
  return is_unchanged(spot);
}

// False: it is full. `is_edge`: of these cells some are below `from`.
bool Shard::scan_cells(std::span<Word> cells, std::uint32_t level, const KeyHash& from, bool is_edge,
                       std::uint64_t bytes_max, std::vector<std::byte>& items, std::optional<KeyHash>& next) const {
  const std::uint32_t first = is_edge ? index(from, level) : 0;
  for (std::uint32_t at = first; at < cells.size(); ++at) {
    for (;;) {
      const Spot spot{&cells[at], cells[at].load(), level};
      if (is_node(spot.seen)) {
        if (!scan_cells(cells_of(spot.seen), level + 1, from, is_edge && at == first, bytes_max, items, next))
          return false;
        break;
      }
      ItemHead head;
      const Met met = read_head(spot, head);
      if (met == Met::changed) continue;
      if (met == Met::nothing || head.hash < from) break;
      const std::size_t start = items.size();
      if (start > 0 && start + bytes_of(head) > bytes_max) {
        next = head.hash;
        return false;
      }
      items.resize(start + bytes_of(head));
      std::memcpy(items.data() + start, &head, sizeof head);
      if (copy_out(spot, head, items.data() + start + sizeof head)) break;
      items.resize(start);
    }
  }
  return true;
}

std::optional<KeyHash> Shard::scan(const KeyHash& from, std::uint64_t bytes_max, std::vector<std::byte>& items) const {
  std::optional<KeyHash> next;
  static_cast<void>(scan_cells(words_.cells, 0, from, true, bytes_max, items, next));
  return next;
}

// -- writing

bool Shard::lock(Who who, Deadline deadline) noexcept {
  for (std::uint32_t tries = 0;; ++tries) {
    std::uint64_t nobody = 0;
    if (words_.lock.load() == 0 && words_.lock.compare_exchange_strong(nobody, who.raw())) break;
    if (tries < 16) {
      ::sched_yield();
    } else {
      if (std::chrono::steady_clock::now() >= deadline) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(tries < 64 ? 20 : 1000));
    }
  }
  kill_point("shared.dict.locked");
  return true;
}

void Shard::unlock() noexcept { words_.lock.store(0); }

Result<GlobalPointer> Shard::make_entry(const Item& item) {
  const auto meta_bytes = static_cast<std::uint32_t>(sizeof item.head + item.key.size() + item.value.size());
  const Result<Address> made = heap_.allocate({.codec = kEntryCodec, .meta_bytes = meta_bytes, .buffer_bytes = {}});
  if (!made.ok()) return made.status();
  std::byte* to = heap::Block(heap_.partition().writable(made.value().offset_bytes())).meta().data();
  std::memcpy(to, &item.head, sizeof item.head);
  std::copy(item.key.begin(), item.key.end(), to + sizeof item.head);
  std::copy(item.value.begin(), item.value.end(), to + sizeof item.head + item.key.size());
  return heap_.publish(made.value());
}

// One change: the cell, and what belongs to it. By the holder of the lock.
void Shard::store(const Spot& spot, const KeyHash& hash, const GlobalPointer& fresh, bool is_node,
                  const GlobalPointer& old, std::uint64_t count) noexcept {
  ShardWords::Intent& intent = words_.intent;
  intent.hash = hash;
  intent.fresh.store(fresh.address.raw());
  intent.fresh_colour.store(fresh.colour);
  intent.old.store(old.address.raw());
  intent.old_colour.store(old.colour);
  intent.count.store(count);
  intent.is_valid.store(1);
  kill_point("shared.dict.noted");
  spot.cell->store(next(spot.seen, fresh.address, is_node));
  kill_point("shared.dict.stored");
  finish();
}

// What follows the store of the cell, each step of it as often as need be.
void Shard::finish() noexcept {
  ShardWords::Intent& intent = words_.intent;
  const GlobalPointer fresh{Address(intent.fresh.load()), intent.fresh_colour.load(), 0};
  const GlobalPointer old{Address(intent.old.load()), intent.old_colour.load(), 0};
  if (!fresh.is_null()) heap_.set_owner(fresh, heap::parent_word(object_.address));
  kill_point("shared.dict.owned");
  words_.count.store(intent.count.load());
  if (!old.is_null()) static_cast<void>(heap_.free_shallow(old));
  kill_point("shared.dict.freed");
  intent.is_valid.store(0);
}

// A node takes the place of the entry `there`, which goes below it; again, until `hash` has a cell of its own.
Status Shard::grow(Spot& spot, const KeyHash& hash, const KeyHash& there) {
  while (!is_nothing(spot.seen)) {
    const Result<Address> made = heap_.allocate(
        {.codec = kNodeCodec, .meta_bytes = sizeof(Word) << kNodeBits, .buffer_bytes = {}});
    if (!made.ok()) return made.status();
    const heap::Block block(heap_.partition().writable(made.value().offset_bytes()));
    std::fill(block.meta().begin(), block.meta().end(), std::byte{0});
    auto* cells = reinterpret_cast<Word*>(block.meta().data());
    cells[index(there, spot.level + 1)].store(next(0, address_of(spot.seen), false));
    store(spot, hash, heap_.publish(made.value()), true, {}, words_.count.load());
    spot = walk(hash);
  }
  return {};
}

bool Shard::append_there(const Spot& spot, const ItemHead& head, std::vector<std::byte>& items) const noexcept {
  const std::size_t start = items.size();
  try {
    items.resize(start + bytes_of(head));
  } catch (const std::bad_alloc&) {
    return false;
  }
  std::memcpy(items.data() + start, &head, sizeof head);
  static_cast<void>(copy_out(spot, head, items.data() + start + sizeof head));
  return true;
}

// By the holder of the lock: `fresh` becomes the entry of `hash`. `there`: what is in the cell, of this or another key.
Shard::Outcome Shard::link(const Spot& spot, const ItemHead* there, const KeyHash& hash, const GlobalPointer& fresh) {
  Spot last = spot;
  const bool is_same = there != nullptr && there->hash == hash;
  if (there != nullptr && !is_same) {
    if (Status status = grow(last, hash, there->hash); !status.ok()) return {status};
  }
  store(last, hash, fresh, false, is_same ? pointer_of(last.seen) : GlobalPointer{},
        words_.count.load() + (is_same ? 0 : 1));
  return {Status(), true, fresh.colour};
}

Shard::Outcome Shard::put(Who who, const Item& item, When when, Colour version, Deadline deadline) {
  const Result<GlobalPointer> fresh = make_entry(item);
  if (!fresh.ok()) return {fresh.status()};
  Outcome outcome{Status(Code::timed_out, "somebody else writes to this Dict")};
  if (lock(who, deadline)) {
    const Spot spot = walk(item.head.hash);
    ItemHead head;
    const bool is_taken = read_head(spot, head) == Met::entry;
    const Colour current = is_taken && head.hash == item.head.hash ? head.version : 0;
    if ((when == When::absent && current != 0) || (when == When::version && current != version)) {
      outcome = {Status(), false, current};
    } else {
      outcome = link(spot, is_taken ? &head : nullptr, item.head.hash, fresh.value());
    }
    unlock();
  }
  if (!outcome.is_done) static_cast<void>(heap_.free_shallow(fresh.value()));
  return outcome;
}

Shard::Outcome Shard::put_if_equal(Who who, const Item& expected, const Item& item, std::vector<std::byte>& items,
                                   Deadline deadline) {
  const Result<GlobalPointer> fresh = make_entry(item);
  if (!fresh.ok()) return {fresh.status()};
  Outcome outcome{Status(Code::timed_out, "somebody else writes to this Dict")};
  if (lock(who, deadline)) {
    const Spot spot = walk(item.head.hash);
    ItemHead head;
    const bool is_there = read_head(spot, head) == Met::entry && head.hash == item.head.hash;
    const std::byte* value = heap_.partition().readable(address_of(spot.seen).offset_bytes()) +
                             sizeof(heap::BlockHeader) + sizeof head + (is_there ? head.key_bytes : 0);
    if (is_there && head.value_kind == expected.head.value_kind && head.value_bytes == expected.value.size() &&
        std::equal(expected.value.begin(), expected.value.end(), value)) {
      outcome = link(spot, &head, item.head.hash, fresh.value());
    } else if (!is_there || append_there(spot, head, items)) {
      outcome = {Status(), false, is_there ? head.version : 0};
    } else {
      outcome = {Status(Code::out_of_memory, "no memory for the value that is there")};
    }
    unlock();
  }
  if (!outcome.is_done) static_cast<void>(heap_.free_shallow(fresh.value()));
  return outcome;
}

Shard::Outcome Shard::remove(Who who, const KeyHash& hash, When when, Colour version, std::vector<std::byte>& items,
                             Deadline deadline) {
  if (!lock(who, deadline)) return {Status(Code::timed_out, "somebody else writes to this Dict")};
  const Spot spot = walk(hash);
  ItemHead head;
  const bool is_there = read_head(spot, head) == Met::entry && head.hash == hash;
  const Colour current = is_there ? head.version : 0;
  if (!is_there || (when == When::version && current != version)) {
    unlock();
    return {Status(), false, current};
  }
  if (!append_there(spot, head, items)) {
    unlock();
    return {Status(Code::out_of_memory, "no memory for what is removed")};
  }
  store(spot, hash, {}, false, pointer_of(spot.seen), words_.count.load() - 1);
  unlock();
  return {Status(), true, 0};
}

// -- the ends

bool Shard::leads_to(const KeyHash& hash, Address block) const noexcept {
  std::span<Word> cells = words_.cells;
  for (std::uint32_t level = 0; level < kLevels; ++level) {
    const std::uint64_t seen = cells[index(hash, level)].load();
    if (!is_nothing(seen) && address_of(seen) == block) return true;
    if (!is_node(seen)) return false;
    cells = cells_of(seen);
  }
  return false;
}

void Shard::bury(const IsDead& is_dead) noexcept {
  const Who holder(words_.lock.load());
  if (holder.is_nobody() || !is_dead(holder)) return;
  const ShardWords::Intent& intent = words_.intent;
  const Address fresh(intent.fresh.load());
  const Address old(intent.old.load());
  const bool is_done = fresh.is_null() ? !leads_to(intent.hash, old) : leads_to(intent.hash, fresh);
  if (intent.is_valid.load() != 0 && is_done) finish();
  words_.intent.is_valid.store(0);
  unlock();
}

void Shard::clear_below(std::span<Word> cells) noexcept {
  for (Word& cell : cells) {
    const std::uint64_t seen = cell.load();
    if (is_nothing(seen)) continue;
    if (is_node(seen)) clear_below(cells_of(seen));
    cell.store(0);
    static_cast<void>(heap_.free_shallow(pointer_of(seen)));
  }
}

void Shard::clear() noexcept { clear_below(words_.cells); }

}  // namespace drust::sync
