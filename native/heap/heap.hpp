// This process's arena over a partition: allocate, publish, recolour, free. Thread-safe inside the process.
//
// Size classes (four a doubling, multiples of 64 bytes) up to kSmallBlockBytesMax live in spans of segments
// that this process has claimed; larger blocks are runs of segments of their own. Which segments are whose
// stands in the segment table, one atomic word each, written by compare-and-swap; which blocks are live
// stands in their headers. Free lists are private memory of this process, rebuilt from headers when an arena
// is adopted, so a crash between any two instructions leaves nothing to repair. A free from another process
// is one compare-and-swap on the header and a hint counted in the segment table: no intrusive list, nothing
// to break.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/block.hpp"
#include "heap/outbox.hpp"
#include "heap/partition.hpp"

namespace drust::heap {

class Arena;
struct Place;

class Heap {
 public:
  Heap(Partition& partition, ProcessId process);
  ~Heap();
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  [[nodiscard]] Partition& partition() const noexcept;
  [[nodiscard]] ProcessId process() const noexcept;

  // A block laid out for `shape`, in state filling(process), owned by this process. out_of_memory leaves all
  // as it was; its detail says what was asked, the quota and what is claimed.
  Result<Address> allocate(const BlockShape& shape);
  // As above for a block of `extent_bytes` whose body will come from a peer (header fields are set by
  // publish_received).
  Result<Address> allocate_extent(std::uint64_t extent_bytes);

  // filling -> a fresh colour: the moment others may see it. Returns the pointer to hand over.
  GlobalPointer publish(Address address);
  // The same for received bytes: takes codec and counts from the sender's `header` after checking them
  // against the block's real extent (bad_request, and the block freed, if they do not fit).
  // `lent`: it is a borrower's version of the sender's block (see share_children()).
  Result<GlobalPointer> publish_received(Address address, const BlockHeader& header, bool lent = false);
  // Before a block is published: the children that its table owns are its own from now on, not the process's that
  // made them. Those of a pre-image stay that one's, and this is a borrower's version of it. If the block is never
  // published, they are this process's again.
  void adopt_children(Address address) noexcept;
  // Before a block is published: its children belong to the pre-image it was made of, too. Until its task has
  // returned, this process's end frees the block without them.
  void share_children(Address address) noexcept;
  // Gives up a block that was never published.
  void abandon(Address address) noexcept;

  // End of a mutable borrow in place: the same block under a fresh colour. stale if it is not
  // `pointer.colour`.
  Result<GlobalPointer> recolour(const GlobalPointer& pointer);
  // By a borrower, before it writes the very block that it was lent: kWriting until the next recolour(), or, where
  // that colour is one that the borrower has drawn, until the second.
  void begin_writing(const GlobalPointer& pointer) noexcept;
  void end_writing(const GlobalPointer& pointer) noexcept;

  // Compare-and-swap colour -> free, of this block alone (`shallow`) or with every child it owns (not the
  // borrowed ones of a task's arguments). Children, and the block itself, that live on other servers are
  // appended to `remote` for the caller to send. Whoever's arena it is. stale or not_found if it is not that
  // version: then nothing changed.
  Status free(const GlobalPointer& pointer, std::vector<GlobalPointer>& remote);
  Status free_shallow(const GlobalPointer& pointer);
  // What a borrower made of a value whose pre-image stays: the block and the children that it does not share.
  Status free_made(const GlobalPointer& pointer, std::vector<GlobalPointer>& remote);

  // `fresh` takes the place of `old`, another version of the same parent: tied children that both name are
  // `fresh`'s from now on, and what is not tied to `old` is no longer its own. So free(old) frees what was tied
  // to the old version alone. False, and nothing changed, if it has no tied children. `fresh` may be null or
  // elsewhere: then they share none. tied.cpp
  bool pass_on(const GlobalPointer& old, const GlobalPointer& fresh);
  // Both steps; a block without tied children is freed alone.
  Status free_tied(const GlobalPointer& old, const GlobalPointer& fresh, std::vector<GlobalPointer>& remote);
  // The tied children of a copied parent stay the original's.
  void disclaim_tied(const GlobalPointer& pointer) noexcept;

  // A byte-for-byte copy under a fresh colour (children are not owned by the copy: the caller frees one of
  // the two shallow). `lent`: the original is a pre-image, the copy the borrower's version.
  Result<GlobalPointer> duplicate(const GlobalPointer& pointer, bool lent = false);

  [[nodiscard]] Colour draw_colour();

  // Frees for other servers that this process owes (outbox.hpp): noted when they are asked for (free() notes those
  // it finds), cleared by whoever has sent them. What a dead process still owed; once.
  void note_owed(const GlobalPointer& remote, std::uint64_t flags) noexcept;
  void clear_owed(Address address, Colour colour) noexcept;
  [[nodiscard]] std::vector<Owed> take_owed(ProcessId dead) noexcept;

  // Takes over the spans of a process that has ended (declared dead or released: anything else is a bug
  // here): what it was putting into a block that it never published is its own again, its filling blocks are freed, the trees it was freeing are freed to the end, its live blocks are
  // kept, and the segment counters are made to agree with the table. Children of such trees on other servers
  // go to `remote` if it is given.
  void adopt(ProcessId dead, std::vector<GlobalPointer>* remote = nullptr);
  // Frees every live block that `dead` answers for as process or borrower, with its children (not those kept
  // for a pre-image). Once nobody has anything of it on loan. Scans every header of the partition.
  std::uint64_t free_owned_by(ProcessId dead, std::vector<GlobalPointer>& remote);

  bool set_owner(const GlobalPointer& pointer, std::uint64_t owner_word) noexcept;
  // The same if it is `expected` now: what another owner has taken over stays his.
  bool change_owner(const GlobalPointer& pointer, std::uint64_t expected, std::uint64_t owner_word) noexcept;
  // Whether a block with that owner word is a version that this process made or was handed by a task below, or lies in
  // one: its pre-image may own children of it as well.
  [[nodiscard]] bool is_of_version(std::uint64_t owner_word) const noexcept;
  // This process owns it from now on, as a version where it was of one. False: that version is gone.
  bool make_own(const GlobalPointer& pointer) noexcept;

  // Collects what others have freed in this process's spans and gives empty spans back. Returns bytes given
  // back. allocate() calls it before it answers out_of_memory.
  std::uint64_t reclaim();
  // Called by allocate(), without any lock of the heap, before it answers out_of_memory: frees what it can of
  // the bytes wanted (copies of remote objects) and returns how many. Set once, before other threads
  // allocate.
  void set_pressure_hook(std::function<std::uint64_t(std::uint64_t)> hook);
  // Called after a block with replicas on another server was freed here: `stamp` is newer than each of them. It
  // must not wait. Set once, before other threads free.
  void set_replica_hook(std::function<void(Address, std::uint64_t stamp)> hook);
  // Called for a version on another server that goes with one here: it is to be freed there by free_made(), as the
  // outbox says meanwhile. It must not wait. Set once, before other threads free; without it, `remote` has it.
  void set_made_hook(std::function<void(const GlobalPointer&)> hook);

 private:
  Result<Address> obtain(std::uint64_t extent_bytes);
  Result<Address> try_obtain(std::uint64_t extent_bytes);
  // free.cpp
  bool begin_free(const Place& place, Colour colour, bool with_children, std::vector<Place>& open);
  void free_open(std::vector<Place>& open, std::vector<GlobalPointer>& remote);
  void give_back(const Place& place) noexcept;
  void adopt_block(const Place& place, ProcessId dead, std::vector<Place>& open);
  void take_back_stranded(ProcessId dead);

  Partition& partition_;
  const ProcessId process_;
  const int pid_;                         // a forked child has no heap: the destructor does nothing there
  std::unique_ptr<Arena> arena_;
  std::atomic<std::uint64_t> next_colour_{0};  // compare-and-swap; a multiple of kColourRange: draw a range
  std::mutex range_mutex_;                     // one thread draws it
  std::function<std::uint64_t(std::uint64_t)> pressure_hook_;  // constant once threads allocate
  std::function<void(Address, std::uint64_t)> replica_hook_;   // constant once threads free
  std::function<void(const GlobalPointer&)> made_hook_;        // constant once threads free
};

}  // namespace drust::heap
