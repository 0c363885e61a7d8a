#include "server/unnamed.hpp"

#include <algorithm>

#include "heap/shared.hpp"

namespace drust::server {

using heap::OwnerKind;

bool Unnamed::is_suspect(std::uint64_t owner_word) const noexcept {
  if (heap::owner_kind(owner_word) == OwnerKind::none) return true;
  if (heap::owner_kind(owner_word) != OwnerKind::parent) return false;
  const heap::Partition& partition = heap_.partition();
  const Address parent = heap::owner_parent(owner_word);
  if (!partition.is_local(parent)) return true;
  // A shared object names its values, messages and segments in words of its own.
  const Result<heap::Block> block = partition.find(parent, kNoColour);
  return !block.ok() || block.value().header().codec != heap::kSharedCodec;
}

std::vector<GlobalPointer> Unnamed::suspects(std::size_t most) const {
  Addresses named;
  std::vector<GlobalPointer> found;
  heap_.partition().each_live_block([&](const heap::BlockInfo& block) {
    if (is_suspect(block.owner)) named.insert(block.pointer.address.raw());
  });
  for (const std::uint64_t address : search(named)) named.erase(address);
  heap_.partition().each_live_block([&](const heap::BlockInfo& block) {
    if (found.size() < most && named.contains(block.pointer.address.raw()) && is_suspect(block.owner))
      found.push_back(block.pointer);
  });
  return found;
}

std::vector<std::uint64_t> Unnamed::search(const Addresses& asked) const {
  Addresses found;
  const auto see = [&](std::uint64_t address) {
    if (address != 0 && asked.contains(address)) found.insert(address);
  };
  // Entries before records: that way a completion goes.
  queue_.each_named([&](Address address) { see(address.raw()); });
  heap_.partition().each_live_child([&](std::uint64_t address) { see(address); });
  heap_.partition().each_live_block([&](const heap::BlockInfo& block) {
    if (block.codec == tasks::kRecordCodec) see(tasks::Queue::completion_in(heap_.partition(), block.pointer).raw());
  });
  return {found.begin(), found.end()};
}

std::optional<std::vector<std::uint64_t>> Unnamed::reveal(const Addresses& asked, std::uint64_t ticket) const {
  const std::optional<std::vector<Address>> noted = heap_.partition().watch().close(ticket);
  if (!noted) return std::nullopt;
  Addresses found;
  for (const Address address : *noted) {
    if (asked.contains(address.raw())) found.insert(address.raw());
  }
  return std::vector<std::uint64_t>(found.begin(), found.end());
}

std::size_t Unnamed::free(std::span<const GlobalPointer> blocks) {
  // As versions: it may be one that a task had made of what others lent through the lost server, and then the children
  // it shares are its lender's. What nobody names of them is found next time.
  const std::uint64_t version = heap::owner_word(OwnerKind::borrower, heap_.process());
  std::size_t freed = 0;
  std::vector<GlobalPointer> remote;
  for (const GlobalPointer& pointer : blocks) {
    const Result<heap::Block> block = heap_.partition().find(pointer.address, pointer.colour);
    if (!block.ok()) continue;
    const std::uint64_t owner = block.value().header().owner.load();
    // Whoever takes it over changes the word.
    if (!is_suspect(owner) || !heap_.change_owner(pointer, owner, version)) continue;
    freed += heap_.free(pointer, remote).ok() ? 1 : 0;
  }
  for (const GlobalPointer& pointer : remote) peers_.free_made_later(pointer);
  return freed;
}

}  // namespace drust::server
