// The Python type ChannelEnd, which Sender and Receiver of drust.sync derive from: one step each; they wait.
#include "bind/hooks.hpp"
#include "bind/python.hpp"
#include "bind/shared.hpp"
#include "sync/channel.hpp"

namespace drust::bind {
namespace {

PyTypeObject channel_end_type;

PyObject* pointer_tuple(const GlobalPointer& p) {
  return Py_BuildValue("(KKK)", static_cast<unsigned long long>(p.address.raw()),
                       static_cast<unsigned long long>(p.colour), static_cast<unsigned long long>(p.extent_bytes));
}

// The channel of a handle of this host. Its handle outlives the call.
sync::Channel channel_of(const SharedObject* shared) {
  return {*shared->runtime->heap, shared->object, *words_of<sync::ChannelWords>(shared)};
}

bool is_known_here(const SharedObject* shared) {
  if (!is_usable(shared)) return refuse_unusable(shared) != nullptr;
  if (shared->life != nullptr) return true;
  PyErr_SetString(PyExc_ValueError, "this channel is on another server");
  return false;
}

// _make(receiver_class, capacity) -> (sender, receiver) of a new channel of this server
PyObject* make(PyObject* cls, PyObject* arguments) {
  PyObject* receiver_class = nullptr;
  unsigned long long capacity = 0;
  if (PyArg_ParseTuple(arguments, "O!K:_make", &PyType_Type, &receiver_class, &capacity) == 0) return nullptr;
  Runtime* runtime = current_runtime();
  if (runtime == nullptr) {
    set_error(Status(Code::closed, "this process is not attached to a drust server"));
    return nullptr;
  }
  GlobalPointer object;
  const auto first = sync::make<sync::ChannelWords>(*runtime->heap, sync::Kind::channel, object);
  if (!first.ok()) {
    set_error(first.status());
    return nullptr;
  }
  sync::find<sync::ChannelWords>(*runtime->partition, object)->capacity.store(capacity);
  const auto second = heap::make_hold(*runtime->heap, object, sync::ChannelWords::kReceivers);
  const Owned sender(
      make_handle(reinterpret_cast<PyTypeObject*>(cls), sync::Kind::channel, object, first.value(), sync::ChannelWords::kSenders));
  if (!second.ok()) {
    set_error(second.status());
    return nullptr;
  }
  const Owned receiver(make_handle(reinterpret_cast<PyTypeObject*>(receiver_class), sync::Kind::channel, object,
                                   second.value(), sync::ChannelWords::kReceivers));
  return sender && receiver ? PyTuple_Pack(2, sender.get(), receiver.get()) : nullptr;
}

// _try_send(pin) -> whether there was room; the message is the channel's then
PyObject* try_send(PyObject* self, PyObject* pin) {
  SharedObject* shared = as_shared(self);
  if (!is_known_here(shared)) return nullptr;
  if (!is_pin(pin)) {
    PyErr_SetString(PyExc_TypeError, "expected a Pin");
    return nullptr;
  }
  const Status status = channel_of(shared).try_send(self_of(shared), as_pin(pin)->pointer);
  if (status.code() == Code::full) return Py_NewRef(Py_False);
  if (status.ok()) {
    as_pin(pin)->on_release = OnRelease::nothing;
    return Py_NewRef(Py_True);
  }
  set_error(status);
  return nullptr;
}

// _try_receive() -> pointer of a message that is this process's now, or None
PyObject* try_receive(PyObject* self, PyObject*) {
  SharedObject* shared = as_shared(self);
  if (!is_known_here(shared)) return nullptr;
  const Result<GlobalPointer> message = channel_of(shared).try_receive(self_of(shared));
  if (message.ok()) return pointer_tuple(message.value());
  if (message.status().code() == Code::timed_out) return new_none();
  set_error(message.status());
  return nullptr;
}

// _changes() -> what to give to _wait: read before the try
PyObject* changes(PyObject* self, PyObject*) {
  SharedObject* shared = as_shared(self);
  if (!is_known_here(shared)) return nullptr;
  const sync::Channel channel = channel_of(shared);
  return PyLong_FromUnsignedLong(shared->role == sync::ChannelWords::kSenders ? channel.rooms() : channel.arrivals());
}

// _wait(changes, wait_ms): until there may be room for a sender, a message for a receiver
PyObject* wait(PyObject* self, PyObject* arguments) {
  unsigned int seen = 0;
  unsigned int wait_ms = 0;
  if (PyArg_ParseTuple(arguments, "II:_wait", &seen, &wait_ms) == 0) return nullptr;
  SharedObject* shared = as_shared(self);
  if (!is_known_here(shared)) return nullptr;
  Wake wake{};
  {
    const Unlocked unlocked;
    sync::Channel channel = channel_of(shared);
    wake = shared->role == sync::ChannelWords::kSenders ? channel.wait_room(seen, deadline_in(wait_ms))
                                                        : channel.wait_arrival(seen, deadline_in(wait_ms));
  }
  if (wake == Wake::interrupted && PyErr_CheckSignals() != 0) return nullptr;
  return new_none();
}

// _send_remote(pin, wait_ms) -> whether there was room: 1 round trip with the message
PyObject* send_remote(PyObject* self, PyObject* arguments) {
  PyObject* pin = nullptr;
  unsigned int wait_ms = 0;
  if (PyArg_ParseTuple(arguments, "O!I:_send_remote", &pin_type, &pin, &wait_ms) == 0) return nullptr;
  SharedObject* shared = as_shared(self);
  if (!is_usable(shared)) return refuse_unusable(shared);
  std::array<std::uint64_t, 3> reply{};
  std::vector<std::byte> none;
  if (!call_home(shared, wire::SharedVerb::send, {self_of(shared).raw(), PyThread_get_thread_ident(), wait_ms, 0},
                 as_pin(pin)->pointer, reply, none))
    return nullptr;
  return PyBool_FromLong(reply[0] == static_cast<std::uint64_t>(wire::SharedAnswer::locked) ? 1 : 0);
}

// _receive_remote(wait_ms) -> (pointer of the message there, its bytes), or None: 1 round trip with the message
PyObject* receive_remote(PyObject* self, PyObject* argument) {
  const unsigned long wait_ms = PyLong_AsUnsignedLong(argument);
  if (wait_ms == static_cast<unsigned long>(-1) && PyErr_Occurred() != nullptr) return nullptr;
  SharedObject* shared = as_shared(self);
  if (!is_usable(shared)) return refuse_unusable(shared);
  std::array<std::uint64_t, 3> reply{};
  std::vector<std::byte> bytes;
  if (!call_home(shared, wire::SharedVerb::receive, {self_of(shared).raw(), PyThread_get_thread_ident(), wait_ms, 0}, {},
                 reply, bytes))
    return nullptr;
  if (bytes.size() <= sizeof(wire::Trailer)) return new_none();
  const Owned where(pointer_tuple({Address(reply[0]), reply[1], reply[2]}));
  const Owned body(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes.data()),
                                             static_cast<Py_ssize_t>(bytes.size() - sizeof(wire::Trailer))));
  return where && body ? PyTuple_Pack(2, where.get(), body.get()) : nullptr;
}

PyObject* get_length(PyObject* self, void*) {
  SharedObject* shared = as_shared(self);
  if (!is_known_here(shared)) return nullptr;
  return PyLong_FromUnsignedLongLong(channel_of(shared).length());
}

PyMethodDef methods[] = {
    {"_make", make, METH_VARARGS | METH_CLASS, "_make(receiver_class, capacity) -> (sender, receiver)"},
    {"_try_send", try_send, METH_O, "_try_send(pin) -> whether there was room"},
    {"_try_receive", try_receive, METH_NOARGS, "_try_receive() -> pointer or None"},
    {"_changes", changes, METH_NOARGS, "_changes() -> what _wait compares with"},
    {"_wait", wait, METH_VARARGS, "_wait(changes, wait_ms)"},
    {"_send_remote", send_remote, METH_VARARGS, "_send_remote(pin, wait_ms) -> whether there was room"},
    {"_receive_remote", receive_remote, METH_O, "_receive_remote(wait_ms) -> (pointer, bytes) or None"},
    kNoMoreMethods,
};

PyGetSetDef getters[] = {
    {"_length", get_length, nullptr, "How many messages are in it.", nullptr},
    kNoMoreGetSets,
};

}  // namespace

bool register_channel(PyObject* module) {
  channel_end_type.tp_name = "drust._core.ChannelEnd";
  channel_end_type.tp_doc = "One end of a channel: see drust.sync.";
  channel_end_type.tp_basicsize = sizeof(SharedObject);
  channel_end_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE;
  channel_end_type.tp_base = &shared_type;
  channel_end_type.tp_methods = methods;
  channel_end_type.tp_getset = getters;
  return add_type(module, channel_end_type, "ChannelEnd") &&
         PyModule_AddIntConstant(module, "KIND_CHANNEL", static_cast<long>(sync::Kind::channel)) == 0 &&
         PyModule_AddIntConstant(module, "OTHER_END", 16) == 0 &&
         PyModule_AddIntConstant(module, "CHANNEL_MESSAGES_MAX", static_cast<long>(kChannelMessagesMax)) == 0;
}

}  // namespace drust::bind
