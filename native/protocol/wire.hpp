// The bytes on the wire: fixed little-endian structs, one request header and one reply header for every
// operation.
//
// A connection begins with the handshake (transport/handshake.hpp); nothing below is parsed before both sides
// have proved that they hold the token. Every field of a peer's frame is checked here (check()) or against a
// live block before use; a field an operation does not use must be zero, so that a later version can give it
// a meaning. Rejected: a general serialiser on the data path (a frame costs less than parsing its schema
// would).
#pragma once

#include <cstdint>
#include <span>

#include "base/address.hpp"
#include "base/limits.hpp"
#include "base/status.hpp"

namespace drust::wire {

enum class Operation : std::uint8_t {
  read_block = 1,  // pointer: the block; no body; reply body: the whole block (header included), then Trailer
  read_region,     // pointer: the block; reply body: the chunks of `region`, gathered, then Trailer
  write_region,    // pointer: the block; body: the chunks, contiguous, received whole before any is put in
                   // place
  free_blocks,     // body: FreeItem[n], n <= kFreesPerBatchMax; no reply
  put_block,       // body: a whole block of extent_bytes; reply pointer: where it is now
  submit,          // pointer: the record at home; body: a task block, to be queued there; argument: retries, Submit
  complete,  // pointer: the record, there; body: a completion block, or none; argument: tasks::RecordState
  inquire,  // pointer: a record at home; ok if its task is queued or runs there, else not_found
  ping,
  control,  // body: opaque bytes for the server's control plane (msgspec); reply body: likewise
  read_blocks,  // body: BlockItem[n], n <= kBlocksPerReadMax; reply body: as many times a whole block and its
                // Trailer, in this order; a block that went while it was served has Code::stale there
  // pointer: a block of the sender's server; body: that block; region.offset_bytes: the batch's stamp; argument:
  // Replicate bits. The last of a batch commits all of it and is answered; the others have no reply.
  replicate,
  read_table,  // pointer: any version of a block; reply pointer: the one that lives at its address, or not_found;
               // reply body: its header and its child table, then Trailer
  withdraw,  // pointer: a record at home; ok if its task waited here and is gone now, else not_found
  // pointer: a hold of a shared object (none to bury); argument: SharedVerb; region: its four operands; body: a block,
  // where the verb has one; reply: what the verb says, in the pointer's fields
  shared,
  count_,
};

// What a process of another server does to a shared object, a step a request. `who` is a sync::Who, `token` names the
// thread there. Where it has to wait, the answer comes when its turn has, or says after `wait_ms` (at most
// kSharedReplyMs): not yet. The place in the line stays; the next request with the same token goes on from it.
enum class SharedVerb : std::uint16_t {
  hold = 1,  // reply: a new hold, by the same role
  bury,      // who: that process has ended; no pointer
  step,      // of an atomic: sync::Step, two operands; reply: the value before
  lock,      // who, token, wait_ms | kRecover, the version that is known; reply: SharedAnswer, version; body: the value
  unlock,    // who, token, kPoisons; body: the value written back, or none; reply: its version
  abandon,   // who, token: whatever this thread has there, waiting or held, it gives up
  send,      // who, token, wait_ms; body: the message; reply: SharedAnswer
  read,      // of a RwLock: as lock, without kRecover
  unread,    // who, token
  receive,   // who, token, wait_ms; reply: the message's pointer, which the receiver frees; body: the message
  dict,      // DictStep | condition << 8, the key's hash in two, the version it must have; reply: see there
  count_,
};
// At a shard of a Dict. Items as sync::Item says; `done`: 1 or 0.
enum class DictStep : std::uint8_t {
  get,     // reply: done; body: the item
  put,     // body: a block of items; reply: done, the version of the last one's key. sync::Shard::When::equal: of what
           // its value has to be, and of what takes its place; reply body: the item that is there instead
  remove,  // reply: done, the version; body: the item that was there
  scan,    // from the hash on; reply: 1 and the hash to go on from, or 0; body: items
  count,   // reply: 1, how many
  count_,
};
struct SharedOperand {
  static constexpr std::uint64_t kRecover = 1ULL << 32;  // with wait_ms: a poisoned lock is taken, and the poison cleared
  static constexpr std::uint64_t kPoisons = 1;
};
enum class SharedAnswer : std::uint64_t {
  waiting,   // not yet
  locked,    // body: the value, if the version that was known is another, and there is one
  poisoned,  // not locked
  again,     // not locked: this very thread holds it
};

// `count` chunks of `chunk_bytes`, `stride_bytes` apart, the first at `offset_bytes` from the start of the
// block's buffer 0.
struct Region {
  std::uint64_t offset_bytes = 0;
  std::uint64_t chunk_bytes = 0;
  std::uint64_t count = 0;
  std::uint64_t stride_bytes = 0;
};

struct RequestHeader {
  static constexpr std::uint32_t kMagic = 0x51747344;
  std::uint32_t magic = kMagic;
  std::uint8_t operation = 0;
  std::uint8_t flags = 0;
  std::uint16_t argument = 0;
  std::uint64_t body_bytes = 0;
  std::uint64_t address = 0;
  std::uint64_t colour = 0;
  std::uint64_t extent_bytes = 0;
  Region region;
};
static_assert(sizeof(RequestHeader) == 72);

struct ReplyHeader {
  static constexpr std::uint32_t kMagic = 0x51747352;
  std::uint32_t magic = kMagic;
  std::uint8_t operation = 0;
  std::uint8_t code = 0;  // drust::Code; when not ok the body is a sentence
  std::uint16_t reserved = 0;
  std::uint64_t body_bytes = 0;
  std::uint64_t address = 0;
  std::uint64_t colour = 0;
  std::uint64_t extent_bytes = 0;
};
static_assert(sizeof(ReplyHeader) == 40);

// Follows the body of a served read: whether the block still had its colour after the last byte was taken.
struct Trailer {
  std::uint64_t code = 0;  // Code::ok or Code::stale
};

static_assert(sizeof(Trailer) == 8);

// The colour in the reply to a completion that decided its record, or the joiner; 0: it was settled before.
inline constexpr std::uint64_t kCompletionCounted = 1;

// Of `submit`: retries, and whether another submission of the same batch follows. Then there is no reply; the last one's
// tells in extent_bytes how many of the batch are queued: all up to the first that was refused.
struct Submit {
  static constexpr std::uint16_t kMore = 0x8000;
};

struct Replicate {
  static constexpr std::uint16_t kMore = 1;       // not the last of its batch
  static constexpr std::uint16_t kConfirmed = 4;  // owned by a process of another server: see FreeItem::kConfirm
  static constexpr std::uint16_t kAll = kMore | kConfirmed;
};

// What travels in batches without a reply: frees, and what a backup server is told about blocks of others.
struct FreeItem {
  static constexpr std::uint64_t kShallow = 1;   // this block alone, not the children it owns
  static constexpr std::uint64_t kTied = 2;      // this block and its tied children
  static constexpr std::uint64_t kPassedOn = 4;  // likewise, but those stay that the next item's block has too
  static constexpr std::uint64_t kSuccessor = 8;  // frees nothing: the block that an item before it speaks of
  static constexpr std::uint64_t kMade = 16;  // a borrower's version: not the children its pre-image owns too
  static constexpr std::uint64_t kReplica = 32;  // replicas of the address older than the stamp in `colour` can go
  static constexpr std::uint64_t kConfirm = 64;  // this version is owned by a process of a server not its own
  static constexpr std::uint64_t kNotice = kReplica | kConfirm;
  std::uint64_t address;
  std::uint64_t colour;
  std::uint64_t flags;
};
static_assert(sizeof(FreeItem) == 24);

// One of the blocks to be read together.
struct BlockItem {
  std::uint64_t address;
  std::uint64_t colour;
  std::uint64_t extent_bytes;
};
static_assert(sizeof(BlockItem) == 24);

// A block on the wire is at least its header.
inline constexpr std::uint64_t kBlockBytesMin = 64;
// A refused request is answered with at most this much of a sentence.
inline constexpr std::uint64_t kSentenceBytesMax = 512;

// The bytes of all chunks; bad_request if they overlap, are more than the wire or a partition can hold, or do
// not lie inside `within_bytes` from where they are counted.
[[nodiscard]] Result<std::uint64_t> total_bytes(const Region& region, std::uint64_t within_bytes);

// ok: every field is in its range, and all that can be known without looking at the heap. Otherwise
// bad_request: the connection cannot be trusted to be at the start of a frame.
[[nodiscard]] Status check(const RequestHeader& header);
// Likewise for the reply to `operation`: bad_request also for a reply to something else.
[[nodiscard]] Status check(const ReplyHeader& header, Operation operation);
// One of a batch; a batch, in which kPassedOn and kSuccessor come in pairs. Whether this server answers for the
// addresses is the server's to say.
[[nodiscard]] Status check(const FreeItem& item);
[[nodiscard]] Status check(std::span<const FreeItem> batch);

// A block to be read.
[[nodiscard]] Status check(const BlockItem& item);

[[nodiscard]] const char* name_of(Operation operation) noexcept;

}  // namespace drust::wire
