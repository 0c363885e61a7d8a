// The Python type DictShard: one step each at a shard of a Dict, here or on its home's server.
//
// A key comes *located*: the 16 bytes of its hash, and its canonical bytes (key_bytes.hpp). An item goes out as
// (kind, data, version): what the kind means is drust.collections' business, but kStr is given as a str.
#include <algorithm>
#include <cstring>

#include "bind/hooks.hpp"
#include "bind/key_bytes.hpp"
#include "bind/python.hpp"
#include "bind/shared.hpp"
#include "sync/dict.hpp"

namespace drust::bind {
namespace {

using sync::Item;
using sync::ItemHead;
using sync::KeyHash;
using sync::Shard;
using wire::DictStep;

constexpr std::uint64_t kStr = 2;
constexpr std::uint32_t kLockMs = 1000;  // then it looks whether a signal came
constexpr std::uint64_t kScanBytesMax = 1ULL << 20;

PyTypeObject dict_shard_type;

Shard shard_of(const SharedObject* shared) {
  return {*shared->runtime->heap, shared->object, *words_of<sync::ShardWords>(shared)};
}

bool to_located(PyObject* located, KeyHash& hash, std::span<const std::byte>& key) {
  if (!PyBytes_Check(located) || PyBytes_GET_SIZE(located) < static_cast<Py_ssize_t>(sizeof hash)) {
    PyErr_SetString(PyExc_TypeError, "expected what locate_key() gives");
    return false;
  }
  const auto* start = reinterpret_cast<const std::byte*>(PyBytes_AS_STRING(located));
  std::memcpy(&hash, start, sizeof hash);
  key = {start + sizeof hash, static_cast<std::size_t>(PyBytes_GET_SIZE(located)) - sizeof hash};
  return true;
}

PyObject* new_data(const ItemHead& head, const std::byte* value) {
  const auto* start = reinterpret_cast<const char*>(value);
  const auto count = static_cast<Py_ssize_t>(head.value_bytes);
  return head.value_kind == kStr ? PyUnicode_DecodeUTF8(start, count, "surrogatepass")
                                 : PyBytes_FromStringAndSize(start, count);
}

PyObject* item_tuple(const Item& item) {
  const Owned data(new_data(item.head, item.value.data()));
  return data ? Py_BuildValue("(KOK)", static_cast<unsigned long long>(item.head.value_kind), data.get(),
                              static_cast<unsigned long long>(item.head.version))
              : nullptr;
}

// Of the one item in `bytes`, which is that key's, or None if there are none.
PyObject* only_item(std::span<const std::byte> bytes, std::span<const std::byte> key) {
  const std::optional<Item> item = sync::take_item(bytes);
  if (!item || !std::ranges::equal(item->key, key)) return new_none();
  return item_tuple(*item);
}

// One round trip, again while somebody has the lock there. False with an error set.
bool ask_home(const SharedObject* shared, DictStep step, Shard::When when, const KeyHash& hash, Colour version,
              const GlobalPointer& body, std::array<std::uint64_t, 3>& reply, std::vector<std::byte>& bytes) {
  const std::uint64_t first = static_cast<std::uint64_t>(step) | static_cast<std::uint64_t>(when) << 8;
  for (;;) {
    const GlobalPointer hold = hold_of(shared);
    const Owned alive = Owned::share(shared->pin);
    const Result<std::array<std::uint64_t, 3>> answer = [&] {
      const Unlocked unlocked;
      return shared->runtime->peers->shared(hold.address.server(), hold, wire::SharedVerb::dict,
                                            {first, hash.high, hash.low, version}, body, bytes);
    }();
    if (answer.ok()) {
      reply = answer.value();
      return true;
    }
    if (answer.status().code() != Code::timed_out) {
      set_error(answer.status());
      return false;
    }
    if (PyErr_CheckSignals() != 0) return false;
  }
}

// A step under the lock of this host's shard, without the interpreter lock. False with an error set.
template <class Step>
bool do_locked(Step&& step, Shard::Outcome& outcome) {
  for (;;) {
    {
      const Unlocked unlocked;
      outcome = step(deadline_in(kLockMs));
    }
    if (outcome.status.ok()) return true;
    if (outcome.status.code() != Code::timed_out) {
      set_error(outcome.status);
      return false;
    }
    if (PyErr_CheckSignals() != 0) return false;
  }
}

bool to_when(unsigned int number, Shard::When& when) {
  when = static_cast<Shard::When>(number);
  if (number < static_cast<unsigned int>(Shard::When::count_)) return true;
  PyErr_SetString(PyExc_ValueError, "the condition is none");
  return false;
}

// locate_key(secret, key) -> bytes
PyObject* locate_key(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyBytes_Check(arguments[0]) || PyBytes_GET_SIZE(arguments[0]) != sizeof(sync::HashSecret)) {
    PyErr_SetString(PyExc_TypeError, "locate_key(secret, key): the secret is 16 bytes");
    return nullptr;
  }
  sync::HashSecret secret;
  std::memcpy(&secret, PyBytes_AS_STRING(arguments[0]), sizeof secret);
  std::vector<std::byte> bytes;
  bytes.reserve(64);
  bytes.resize(sizeof(KeyHash));
  if (!append_key(arguments[1], bytes)) return nullptr;
  const KeyHash hash = sync::hash_key(secret, std::span(bytes).subspan(sizeof(KeyHash)));
  std::memcpy(bytes.data(), &hash, sizeof hash);
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes.data()), static_cast<Py_ssize_t>(bytes.size()));
}

PyObject* make(PyObject* cls, PyObject*) {
  Runtime* runtime = current_runtime();
  if (runtime == nullptr) {
    set_error(Status(Code::closed, "this process is not attached to a drust server"));
    return nullptr;
  }
  GlobalPointer object;
  const auto hold = sync::make<sync::ShardWords>(*runtime->heap, sync::Kind::shard, object);
  if (!hold.ok()) {
    set_error(hold.status());
    return nullptr;
  }
  return make_handle(reinterpret_cast<PyTypeObject*>(cls), sync::Kind::shard, object, hold.value(), 0);
}

// _get(located) -> (kind, data, version) or None
PyObject* get(PyObject* self, PyObject* located) {
  SharedObject* shared = as_shared(self);
  if (!is_usable(shared)) return refuse_unusable(shared);
  KeyHash hash;
  std::span<const std::byte> key;
  if (!to_located(located, hash, key)) return nullptr;
  std::vector<std::byte> bytes;
  if (shared->life == nullptr) {
    std::array<std::uint64_t, 3> reply{};
    if (!ask_home(shared, DictStep::get, Shard::When::always, hash, 0, {}, reply, bytes)) return nullptr;
    return only_item(bytes, key);
  }
  std::array<std::byte, 512> small;
  std::byte* room = nullptr;
  Item item;
  const bool is_there = shard_of(shared).find(hash, [&](const ItemHead& head) {
    item.head = head;
    const std::size_t wanted = std::size_t{head.key_bytes} + head.value_bytes;
    room = small.data();
    if (wanted > small.size()) {
      bytes.resize(wanted);
      room = bytes.data();
    }
    return room;
  });
  if (!is_there || !std::ranges::equal(std::span<const std::byte>(room, item.head.key_bytes), key)) return new_none();
  item.value = {room + item.head.key_bytes, item.head.value_bytes};
  return item_tuple(item);
}

Item item_of(const KeyHash& hash, std::span<const std::byte> key, std::uint64_t kind, const Py_buffer& data) {
  Item item;
  item.head.hash = hash;
  item.head.key_bytes = static_cast<std::uint32_t>(key.size());
  item.head.value_bytes = static_cast<std::uint32_t>(data.len);
  item.head.value_kind = kind;
  item.key = key;
  item.value = {static_cast<const std::byte*>(data.buf), static_cast<std::size_t>(data.len)};
  return item;
}

bool is_small_enough(std::span<const std::byte> key, Py_ssize_t bytes) {
  if (static_cast<std::uint64_t>(bytes) + key.size() + sizeof(ItemHead) <= sync::kItemBytesMax) return true;
  PyErr_SetString(PyExc_ValueError, "a value of a Dict has at most 1 GiB: put large ones into Boxes, and tell where");
  return false;
}

// Puts the items of `bytes` at the home: 1 round trip. False with an error set.
bool put_away(const SharedObject* shared, std::span<const std::byte> bytes, Shard::When when, Colour version,
              Shard::Outcome& outcome, std::vector<std::byte>& there) {
  heap::Heap& heap = *shared->runtime->heap;
  const Result<Address> made = heap.allocate({.codec = sync::kItemsCodec,
                                              .meta_bytes = static_cast<std::uint32_t>(bytes.size()), .buffer_bytes = {}});
  if (!made.ok()) {
    set_error(made.status());
    return false;
  }
  std::ranges::copy(bytes, heap::Block(heap.partition().writable(made.value().offset_bytes())).meta().begin());
  const GlobalPointer body = heap.publish(made.value());
  std::array<std::uint64_t, 3> reply{};
  const bool is_told = ask_home(shared, DictStep::put, when, {}, version, body, reply, there);
  static_cast<void>(heap.free_shallow(body));
  outcome.is_done = reply[0] != 0;
  outcome.version = reply[1];
  return is_told;
}

struct Release {
  Py_buffer& data;
  ~Release() {
    if (data.obj != nullptr) PyBuffer_Release(&data);
  }
};

// _put(located, kind, data, when, version) -> (whether it is put, the version that the key has)
PyObject* put(PyObject* self, PyObject* arguments) {
  PyObject* located = nullptr;
  unsigned long long kind = 0;
  Py_buffer data{};
  unsigned int number = 0;
  unsigned long long version = 0;
  if (PyArg_ParseTuple(arguments, "OKy*IK:_put", &located, &kind, &data, &number, &version) == 0) return nullptr;
  const Release release{data};
  SharedObject* shared = as_shared(self);
  if (!is_usable(shared)) return refuse_unusable(shared);
  KeyHash hash;
  std::span<const std::byte> key;
  Shard::When when{};
  if (!to_located(located, hash, key) || !to_when(number, when) || !is_small_enough(key, data.len)) return nullptr;
  const Item item = item_of(hash, key, kind, data);
  const Owned alive = Owned::share(self);
  Shard::Outcome outcome;
  if (shared->life == nullptr) {
    std::vector<std::byte> bytes;
    std::vector<std::byte> none;
    sync::append_item(bytes, item);
    if (!put_away(shared, bytes, when, version, outcome, none)) return nullptr;
  } else {
    Shard shard = shard_of(shared);
    if (!do_locked([&](Deadline deadline) { return shard.put(self_of(shared), item, when, version, deadline); }, outcome))
      return nullptr;
  }
  return Py_BuildValue("(NK)", PyBool_FromLong(outcome.is_done ? 1 : 0), static_cast<unsigned long long>(outcome.version));
}

// _compare_and_set(located, (kind, data), (kind, data)) -> (whether it is put, the version that the key has, what it
// has instead or None)
PyObject* compare_and_set(PyObject* self, PyObject* arguments) {
  PyObject* located = nullptr;
  std::array<unsigned long long, 2> kinds{};
  Py_buffer expected{};
  Py_buffer fresh{};
  const Release releases[] = {{expected}, {fresh}};
  if (PyArg_ParseTuple(arguments, "O(Ky*)(Ky*):_compare_and_set", &located, &kinds[0], &expected, &kinds[1], &fresh) == 0)
    return nullptr;
  SharedObject* shared = as_shared(self);
  if (!is_usable(shared)) return refuse_unusable(shared);
  KeyHash hash;
  std::span<const std::byte> key;
  if (!to_located(located, hash, key) || !is_small_enough(key, expected.len) || !is_small_enough(key, fresh.len))
    return nullptr;
  const Item first = item_of(hash, key, kinds[0], expected);
  const Item second = item_of(hash, key, kinds[1], fresh);
  const Owned alive = Owned::share(self);
  Shard::Outcome outcome;
  std::vector<std::byte> there;
  if (shared->life == nullptr) {
    std::vector<std::byte> bytes;
    sync::append_item(bytes, first);
    sync::append_item(bytes, second);
    if (!put_away(shared, bytes, Shard::When::equal, 0, outcome, there)) return nullptr;
  } else {
    Shard shard = shard_of(shared);
    const auto step = [&](Deadline deadline) { return shard.put_if_equal(self_of(shared), first, second, there, deadline); };
    if (!do_locked(step, outcome)) return nullptr;
  }
  const Owned item(only_item(there, key));
  return item ? Py_BuildValue("(NKO)", PyBool_FromLong(outcome.is_done ? 1 : 0),
                              static_cast<unsigned long long>(outcome.version), item.get())
              : nullptr;
}

// _put_many([(located, kind, data), ...]): one after the other; elsewhere 1 round trip for all
PyObject* put_many(PyObject* self, PyObject* items) {
  SharedObject* shared = as_shared(self);
  if (!is_usable(shared)) return refuse_unusable(shared);
  const Owned list(PySequence_Fast(items, "expected items"));
  if (!list) return nullptr;
  std::vector<std::byte> bytes;
  for (Py_ssize_t index = 0; index < PySequence_Fast_GET_SIZE(list.get()); ++index) {
    PyObject* located = nullptr;
    unsigned long long kind = 0;
    Py_buffer data{};
    if (PyArg_ParseTuple(PySequence_Fast_GET_ITEM(list.get(), index), "OKy*:_put_many", &located, &kind, &data) == 0)
      return nullptr;
    KeyHash hash;
    std::span<const std::byte> key;
    const bool is_good = to_located(located, hash, key) && is_small_enough(key, data.len);
    if (is_good) sync::append_item(bytes, item_of(hash, key, kind, data));
    PyBuffer_Release(&data);
    if (!is_good) return nullptr;
  }
  if (bytes.empty()) return new_none();
  if (bytes.size() > 2 * sync::kItemBytesMax) {
    PyErr_SetString(PyExc_ValueError, "too much at once");
    return nullptr;
  }
  if (shared->life == nullptr) {
    Shard::Outcome outcome;
    std::vector<std::byte> none;
    return put_away(shared, bytes, Shard::When::always, 0, outcome, none) ? new_none() : nullptr;
  }
  const Owned alive = Owned::share(self);
  Shard shard = shard_of(shared);
  std::span<const std::byte> left = bytes;
  while (const std::optional<Item> item = sync::take_item(left)) {
    Shard::Outcome outcome;
    if (!do_locked([&](Deadline deadline) { return shard.put(self_of(shared), *item, Shard::When::always, 0, deadline); },
                   outcome))
      return nullptr;
  }
  return new_none();
}

// _remove(located, when, version) -> (whether it is gone, the version that the key has, what it had or None)
PyObject* remove(PyObject* self, PyObject* arguments) {
  PyObject* located = nullptr;
  unsigned int number = 0;
  unsigned long long version = 0;
  if (PyArg_ParseTuple(arguments, "OIK:_remove", &located, &number, &version) == 0) return nullptr;
  SharedObject* shared = as_shared(self);
  if (!is_usable(shared)) return refuse_unusable(shared);
  KeyHash hash;
  std::span<const std::byte> key;
  Shard::When when{};
  if (!to_located(located, hash, key) || !to_when(number, when)) return nullptr;
  std::vector<std::byte> bytes;
  Shard::Outcome outcome;
  if (shared->life == nullptr) {
    std::array<std::uint64_t, 3> reply{};
    if (!ask_home(shared, DictStep::remove, when, hash, version, {}, reply, bytes)) return nullptr;
    outcome.is_done = reply[0] != 0;
    outcome.version = reply[1];
  } else {
    const Owned alive = Owned::share(self);
    Shard shard = shard_of(shared);
    if (!do_locked([&](Deadline deadline) { return shard.remove(self_of(shared), hash, when, version, bytes, deadline); },
                   outcome))
      return nullptr;
  }
  const Owned item(only_item(bytes, key));
  return item ? Py_BuildValue("(NKO)", PyBool_FromLong(outcome.is_done ? 1 : 0),
                              static_cast<unsigned long long>(outcome.version), item.get())
              : nullptr;
}

// _scan(place) -> (place to go on from or None, [(key, kind, data), ...]): about 1 MiB, 1 round trip
PyObject* scan(PyObject* self, PyObject* place) {
  SharedObject* shared = as_shared(self);
  if (!is_usable(shared)) return refuse_unusable(shared);
  KeyHash from;
  std::span<const std::byte> none;
  if (!to_located(place, from, none)) return nullptr;
  std::vector<std::byte> bytes;
  std::optional<KeyHash> next;
  if (shared->life == nullptr) {
    std::array<std::uint64_t, 3> reply{};
    if (!ask_home(shared, DictStep::scan, Shard::When::always, from, 0, {}, reply, bytes)) return nullptr;
    if (reply[0] != 0) next = KeyHash{reply[1], reply[2]};
  } else {
    next = shard_of(shared).scan(from, kScanBytesMax, bytes);
  }
  const Owned items(PyList_New(0));
  std::span<const std::byte> left = bytes;
  while (items) {
    const std::optional<Item> item = sync::take_item(left);
    if (!item) break;
    std::span<const std::byte> key_bytes = item->key;
    const Owned key(take_key(key_bytes));
    const Owned data(key ? new_data(item->head, item->value.data()) : nullptr);
    const Owned row(data ? Py_BuildValue("(OKO)", key.get(), static_cast<unsigned long long>(item->head.value_kind),
                                         data.get())
                         : nullptr);
    if (!row || PyList_Append(items.get(), row.get()) != 0) return nullptr;
  }
  if (!items) return nullptr;
  if (!next) return Py_BuildValue("(OO)", Py_None, items.get());
  const Owned from_there(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(&*next), sizeof *next));
  return from_there ? PyTuple_Pack(2, from_there.get(), items.get()) : nullptr;
}

// _count() -> how many keys
PyObject* count(PyObject* self, PyObject*) {
  SharedObject* shared = as_shared(self);
  if (!is_usable(shared)) return refuse_unusable(shared);
  if (shared->life != nullptr) return PyLong_FromUnsignedLongLong(shard_of(shared).count());
  std::array<std::uint64_t, 3> reply{};
  std::vector<std::byte> none;
  if (!ask_home(shared, DictStep::count, Shard::When::always, {}, 0, {}, reply, none)) return nullptr;
  return PyLong_FromUnsignedLongLong(reply[1]);
}

PyMethodDef methods[] = {
    {"_make", make, METH_NOARGS | METH_CLASS, "_make() -> a shard, at home on this server"},
    {"_get", get, METH_O, "_get(located) -> (kind, data, version) or None"},
    {"_put", put, METH_VARARGS, "_put(located, kind, data, when, version) -> (whether it is put, version)"},
    {"_compare_and_set", compare_and_set, METH_VARARGS,
     "_compare_and_set(located, (kind, data), (kind, data)) -> (whether it is put, version, item or None)"},
    {"_put_many", put_many, METH_O, "_put_many(items)"},
    {"_remove", remove, METH_VARARGS, "_remove(located, when, version) -> (whether it is gone, version, item or None)"},
    {"_scan", scan, METH_O, "_scan(place) -> (next place or None, items)"},
    {"_count", count, METH_NOARGS, "_count() -> how many keys"},
    kNoMoreMethods,
};

PyMethodDef functions[] = {
    {"locate_key", as_method(locate_key), METH_FASTCALL, "locate_key(secret, key) -> its hash, and its canonical bytes"},
    kNoMoreMethods,
};

}  // namespace

bool register_dict(PyObject* module) {
  dict_shard_type.tp_name = "drust._core.DictShard";
  dict_shard_type.tp_doc = "A shard of a Dict: see drust.collections.";
  dict_shard_type.tp_basicsize = sizeof(SharedObject);
  dict_shard_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE;
  dict_shard_type.tp_base = &shared_type;
  dict_shard_type.tp_methods = methods;
  return add_type(module, dict_shard_type, "DictShard") && PyModule_AddFunctions(module, functions) == 0 &&
         PyModule_AddIntConstant(module, "KIND_SHARD", static_cast<long>(sync::Kind::shard)) == 0;
}

}  // namespace drust::bind
