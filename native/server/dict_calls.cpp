// Steps at a shard of a Dict of this server, for processes of others: the server does them itself, in one go.
#include <algorithm>
#include <cstring>

#include "server/operations.hpp"
#include "sync/dict.hpp"

namespace drust::server {
namespace {

using wire::DictStep;

constexpr std::uint32_t kLockMs = 200;  // a server's loop waits no longer for a lock; the asker asks again
constexpr std::uint64_t kScanBytesMax = 1ULL << 20;

Answer refused(Code code, const char* why) {
  Answer answer;
  answer.status = Status(code, why);
  return answer;
}

Answer answer_of(sync::Shard::Outcome outcome, std::vector<std::byte> items = {}) {
  Answer answer;
  answer.status = std::move(outcome.status);
  answer.pointer = {Address(outcome.is_done ? 1 : 0), outcome.version, 0};
  if (answer.status.ok()) answer.body = std::move(items);
  return answer;
}

}  // namespace

Answer Operations::step_dict(const wire::RequestHeader& header, const GlobalPointer& object, Intake& intake) {
  auto* words = sync::find<sync::ShardWords>(heap_.partition(), object);
  if (words == nullptr) return refused(Code::bad_request, "the shared object is no Dict");
  sync::Shard shard(heap_, object, *words);
  const sync::Who self = sync::Who::make(server(), heap_.process());
  const wire::Region& operands = header.region;
  const auto step = static_cast<DictStep>(operands.offset_bytes & 0xffU);
  const auto when = static_cast<sync::Shard::When>(operands.offset_bytes >> 8 & 0xffU);
  if (when >= sync::Shard::When::count_) return refused(Code::bad_request, "the condition is none");
  const sync::KeyHash hash{operands.chunk_bytes, operands.count};
  std::vector<std::byte> items;
  switch (step) {
    case DictStep::get: {
      const bool is_there = shard.find(hash, [&](const sync::ItemHead& head) {
        items.resize(sync::bytes_of(head));
        std::memcpy(items.data(), &head, sizeof head);
        return items.data() + sizeof head;
      });
      return answer_of({Status(), is_there, 0}, std::move(items));
    }
    case DictStep::remove: {
      sync::Shard::Outcome outcome = shard.remove(self, hash, when, operands.stride_bytes, items, deadline_in(kLockMs));
      return answer_of(std::move(outcome), std::move(items));
    }
    case DictStep::count: {
      Answer answer;
      answer.pointer = {Address(1), shard.count(), 0};
      return answer;
    }
    case DictStep::scan: {
      const std::optional<sync::KeyHash> next = shard.scan(hash, kScanBytesMax, items);
      Answer answer;
      answer.pointer = {Address(next ? 1 : 0), next ? next->high : 0, next ? next->low : 0};
      answer.body = std::move(items);
      return answer;
    }
    case DictStep::put: return put_dict(shard, when, operands.stride_bytes, intake);
    case DictStep::count_: break;
  }
  return refused(Code::bad_request, "a Dict has no such step");
}

// The items of the body, one after the other; if one fails, those before it are put. The words: of the last.
Answer Operations::put_dict(sync::Shard& shard, sync::Shard::When when, Colour version, Intake& intake) {
  if (intake.block.is_null()) return refused(Code::bad_request, "nothing is to be put");
  const Result<GlobalPointer> sent = publish(intake);
  if (!sent.ok()) return refused(Code::bad_request, "the items are no block");
  const Result<heap::Block> block = heap_.partition().find(sent.value().address, sent.value().colour);
  sync::Shard::Outcome outcome{Status(Code::bad_request, "the block has no items")};
  std::vector<std::byte> there;
  if (block.ok() && block.value().header().codec == sync::kItemsCodec && block.value().header().child_count == 0) {
    std::span<const std::byte> left = block.value().meta();
    while (!left.empty()) {
      const std::optional<sync::Item> item = sync::take_item(left);
      if (!item) {
        outcome = {Status(Code::bad_request, "the block ends within an item")};
        break;
      }
      const sync::Who self = sync::Who::make(server(), heap_.process());
      if (when != sync::Shard::When::equal) {
        outcome = shard.put(self, *item, when, version, deadline_in(kLockMs));
      } else if (const std::optional<sync::Item> fresh = sync::take_item(left); fresh && left.empty()) {
        outcome = shard.put_if_equal(self, *item, *fresh, there, deadline_in(kLockMs));
      } else {
        outcome = {Status(Code::bad_request, "expected two items: what the value has to be, and what is put")};
      }
      if (!outcome.status.ok()) break;
    }
  }
  static_cast<void>(heap_.free_shallow(sent.value()));
  return answer_of(std::move(outcome), std::move(there));
}

}  // namespace drust::server
