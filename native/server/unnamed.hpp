// Blocks that nobody names any more: what the processes of a lost server owned on others.
//
// The owner word of a block that went to another server with its handle says nobody, or a parent that is gone, whether
// its owner lives or not. But an owner's server has a block that names it: the call, the completion, the message that
// brought it, a value that it lies in, or a holder (bind/anchor.hpp). So after a loss all servers that live look
// through their tables for the *suspects* of each (src/drust/server/unnamed.py has the steps):
//
//     everybody   suspects()       some seconds before: what is on its way for an instant is not one then
//     everybody   watch()          from here on, names that appear are noted
//     everybody   search(asked)    those that stand in a table
//     everybody   reveal(asked)    those that were noted meanwhile
//     their home  free(blocks)     those that neither found, if they are still suspects, and the same version
//
// A name moves by being written anew before the old one goes. So it stands still from watch() to the search of its
// server, and is found; or it was noted, on whichever server it went to.
//
// Rejected: an owner word that names the owner's server (each hand-over of a block of a third server would cost a
// round trip to its home before it may be acknowledged, or a loss would free what lives).
#pragma once

#include <optional>
#include <span>
#include <unordered_set>
#include <vector>

#include "heap/heap.hpp"
#include "server/peers.hpp"
#include "tasks/queue.hpp"

namespace drust::server {

class Unnamed {
 public:
  Unnamed(heap::Heap& heap, tasks::Queue& queue, Peers& peers) noexcept : heap_(heap), queue_(queue), peers_(peers) {}

  using Addresses = std::unordered_set<std::uint64_t>;

  // Live blocks of this partition whose owner word names nobody that lives here; at most `most`.
  [[nodiscard]] std::vector<GlobalPointer> suspects(std::size_t most) const;
  std::uint64_t watch() const noexcept { return heap_.partition().watch().open(); }  // a ticket for reveal()
  // Which of them stand in a table of this partition. Looks at every block.
  [[nodiscard]] std::vector<std::uint64_t> search(const Addresses& asked) const;
  // Which of them were named since watch(), and the end of it. Nothing: nobody knows.
  [[nodiscard]] std::optional<std::vector<std::uint64_t>> reveal(const Addresses& asked, std::uint64_t ticket) const;
  // How many are freed, each with what it owns, but for what another version may share (ChildPointer::kKept).
  std::size_t free(std::span<const GlobalPointer> blocks);

 private:
  [[nodiscard]] bool is_suspect(std::uint64_t owner_word) const noexcept;

  heap::Heap& heap_;
  tasks::Queue& queue_;
  Peers& peers_;
};

}  // namespace drust::server
