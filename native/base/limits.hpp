// Every fixed limit of the native code, with its unit in its name and the relations between them checked here.
//
// A limit lives in this file or it does not exist: docs/limits.md lists the same figures for users.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drust {

inline constexpr std::uint32_t kServerBits = 12;
inline constexpr std::uint32_t kGranuleBits = 36;
inline constexpr std::uint64_t kGranuleBytes = 16;
inline constexpr std::uint32_t kServersMax = 1U << kServerBits;
inline constexpr std::uint64_t kPartitionBytesMax = (1ULL << kGranuleBits) * kGranuleBytes;  // 1 TiB
inline constexpr std::uint64_t kServersPerClusterMax = 64;  // rows of the endpoint table kept in each partition

// Colours: the top bits are the server's incarnation, the rest a counter processes draw ranges from.
inline constexpr std::uint32_t kIncarnationBits = 16;
inline constexpr std::uint64_t kColourRange = 1ULL << 16;

// The heap.
inline constexpr std::uint64_t kSegmentBytes = 64 * 1024;
inline constexpr std::uint64_t kBlockAlignment = 64;
inline constexpr std::uint64_t kSmallBlockBytesMax = 64 * 1024;  // above: a run of segments of its own
inline constexpr std::uint64_t kSpanBytesMax = 512 * 1024;       // segments one size class claims at a time
inline constexpr std::uint32_t kProcessesMax = 256;              // process slots of one partition
inline constexpr std::uint64_t kBackingStepBytes = 16ULL << 20;  // one fallocate: a signal repeats a step, not a run
inline constexpr std::uint64_t kMemoryCheckBytes = 64ULL << 20;  // memory of the machine is looked at again after this
inline constexpr std::uint32_t kMemoryCheckMs = 100;             // many bytes were backed, or this long
inline constexpr std::uint64_t kMemoryReserveBytesMax = 512ULL << 20;  // left to everybody else: this, or a 32nd
inline constexpr std::uint32_t kWaitSliceMs = 100;  // how often a wait looks whether whom it waits for still lives
inline constexpr std::uint32_t kPatienceUs = 100;     // how long a wait looks again before it sleeps, while that pays,
inline constexpr std::uint32_t kPatienceUsMax = 200;  // and when it tries again whether it does

// The copy table.
inline constexpr std::uint32_t kCopiesMax = 1U << 15;
inline constexpr std::uint32_t kCopyProbesMax = 64;

// Tasks.
inline constexpr std::uint64_t kPreImageBytesMax = 1ULL << 20;  // larger values are written in place, without undo
inline constexpr std::uint32_t kQueueEntries = 1U << 14;
inline constexpr std::uint32_t kRetriesMax = 1000;  // of one task
inline constexpr std::uint32_t kSubmitsPerBatchMax = 256;  // sent in one call: three pieces each, IOV_MAX is 1024
inline constexpr std::uint32_t kCompletionsPerBatchMax = 64;  // sent in one call: three pieces each, as above
inline constexpr std::uint64_t kCompletionBatchBytes = 256 * 1024;  // a batch ends with the one that passes this
inline constexpr std::uint32_t kCompletionsWaitingMax = 1024;  // of one process, for one server
inline constexpr std::uint32_t kArrivalsKept = 1024;  // completions a process may not have looked at, before it looks at all
inline constexpr std::uint64_t kInlineCompletionBytesMax = 64 * 1024;

// Shared objects.
inline constexpr std::uint32_t kWaitersMax = 32;         // in the line of one lock; more wait for a place in it
inline constexpr std::uint32_t kReadersMax = 64;         // at once of one RwLock; more wait until one leaves
inline constexpr std::uint64_t kChannelMessagesMax = 1ULL << 20;  // of an unbounded channel, and the largest bound
inline constexpr std::uint32_t kSharedReplyMs = 1000;    // a request that has to wait is answered by then: not yet
inline constexpr std::uint32_t kSharedLapseMs = 3000;    // a remote waiter that does not ask again loses its place
inline constexpr std::uint32_t kSharedBatchMs = 2;       // looks for what nobody holds any more are this far apart
inline constexpr std::uint32_t kBuriedKept = 1024;  // processes of other servers of which a server knows that they died

// Reaping.
inline constexpr std::uint32_t kOutboxRows = 2048;  // frees of one process that may not have arrived yet
inline constexpr std::uint32_t kOutboxProbesMax = 32;
inline constexpr std::uint32_t kTellAgainMs = 1000;  // a server that did not hear of a death is told again after this
inline constexpr std::uint32_t kLostCallMs = 500;   // a call that its dead sender may have sent has arrived by then

// The wire.
inline constexpr std::uint16_t kProtocolVersion = 1;
inline constexpr std::uint64_t kFrameBodyBytesMax = 1ULL << 40;
inline constexpr std::uint64_t kControlBodyBytesMax = 16ULL << 20;  // bodies that are buffered whole before use
inline constexpr std::uint32_t kFreesPerBatchMax = 64;
inline constexpr std::uint32_t kFreesAgainMs = 100;  // until frees that may not have arrived are sent again
inline constexpr std::uint32_t kBlocksPerReadMax = 256;  // received in one call: three pieces a block, IOV_MAX is 1024
inline constexpr std::uint32_t kTokenBytes = 32;
inline constexpr std::uint32_t kConnectTimeoutMs = 2000;
inline constexpr std::uint32_t kPeerTimeoutMs = 4000;  // a cut cable or a stopped peer is an error after this
inline constexpr std::uint32_t kHeartbeatMs = 1000;

// The board on which tests kill processes (kill_point.hpp).
inline constexpr std::uint32_t kKillPointsMax = 128;
inline constexpr std::uint32_t kKillRows = 96;
inline constexpr std::uint64_t kKillBoardBytes = 4096;
// Replicas.
inline constexpr std::uint32_t kPromotionWaitMs = 4500;  // a request to a lost server waits so long for its successor
inline constexpr std::uint32_t kFreesKeptMs = 3000;  // frees that a server may have taken with it are kept, to be repeated
inline constexpr std::uint32_t kNoticesKeptMs = 2000;  // what a dead sender had put on the wire arrives within this
inline constexpr std::uint64_t kReplicaBatchBytes = 16ULL << 20;  // one commit of what a new backup is given
inline constexpr std::uint32_t kReplicaBatchBlocks = 256;

static_assert(kServerBits + kGranuleBits == 48);
static_assert(kSegmentBytes % 4096 == 0 && kSpanBytesMax % kSegmentBytes == 0);
static_assert(kSmallBlockBytesMax * 8 <= kSpanBytesMax);
static_assert(kProcessesMax % 64 == 0);
static_assert(kKillPointsMax * 8 + kKillRows * 32 == kKillBoardBytes);
static_assert((kCopiesMax & (kCopiesMax - 1)) == 0 && (kQueueEntries & (kQueueEntries - 1)) == 0 &&
              (kArrivalsKept & (kArrivalsKept - 1)) == 0);
static_assert(kPeerTimeoutMs < 5000 && kPromotionWaitMs < 5000, "every wait on a lost server must end within 5 s");

}  // namespace drust
