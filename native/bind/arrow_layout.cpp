#include "bind/arrow_layout.hpp"

#include <algorithm>
#include <cstring>
#include <span>
#include <string_view>

namespace drust::bind {
namespace {

constexpr std::int64_t kNullsInBuffer = -2;  // as IN_BUFFER of drust/codecs/columns.py: buffer 0 has their number
constexpr std::int64_t kNoBuffer = -1;       // as NO_BUFFER there

bool refuse(const char* what) {
  PyErr_SetString(PyExc_ValueError, what);
  return false;
}

// What the format string of a type says of its buffers.
struct Shape {
  enum class Kind : std::uint8_t { unknown, nothing, values, strings, views, lists, fixed_lists, structs } kind;
  std::uint64_t unit = 0;  // bits of a value; bytes of an offset; items of a fixed list
};

// The number after the last comma or colon of a format.
std::uint64_t last_number(std::string_view format) noexcept {
  std::uint64_t value = 0;
  for (const char digit : format.substr(format.find_last_of(",:") + 1)) {
    value = value * 10 + static_cast<std::uint64_t>(digit - '0');
  }
  return value;
}

Shape shape_of(std::string_view format) noexcept {
  using Kind = Shape::Kind;
  if (format.size() == 1) {
    switch (format[0]) {
      case 'n': return {Kind::nothing};
      case 'b': return {Kind::values, 1};
      case 'c': case 'C': return {Kind::values, 8};
      case 's': case 'S': case 'e': return {Kind::values, 16};
      case 'i': case 'I': case 'f': return {Kind::values, 32};
      case 'l': case 'L': case 'g': return {Kind::values, 64};
      case 'u': case 'z': return {Kind::strings, 4};
      case 'U': case 'Z': return {Kind::strings, 8};
      default: return {Kind::unknown};
    }
  }
  if (format == "vu" || format == "vz") return {Kind::views};
  if (format == "tdD" || format == "tts" || format == "ttm") return {Kind::values, 32};
  if (format == "tdm" || format == "ttu" || format == "ttn") return {Kind::values, 64};
  if (format.starts_with("ts") || format.starts_with("tD")) return {Kind::values, 64};
  if (format == "tin") return {Kind::values, 128};
  if (format.starts_with("w:")) return {Kind::values, 8 * last_number(format)};
  if (format.starts_with("d:")) {
    const bool tells_bits = format.find(',') != format.rfind(',');
    return {Kind::values, tells_bits ? last_number(format) : 128};
  }
  if (format == "+l" || format == "+m") return {Kind::lists, 4};
  if (format == "+L") return {Kind::lists, 8};
  if (format.starts_with("+w:")) return {Kind::fixed_lists, last_number(format)};
  return {format == "+s" ? Kind::structs : Kind::unknown};
}

class Reader {
 public:
  explicit Reader(const PinObject* pin) : block_(block_of(pin)), buffer_count_(block_.header().buffer_count) {}

  bool read(const ArrowSchema& schema, PyObject* node, Layout& layout) {
    PyObject* parts[4];  // borrowed: length, number of nulls, places of buffers, children
    if (!unpack(node, parts)) return refuse("a node is (length, nulls, places, children)");
    layout.length = PyLong_AsLongLong(parts[0]);
    layout.null_count = PyLong_AsLongLong(parts[1]);
    if (PyErr_Occurred() != nullptr) return false;
    if (layout.length < 0) return refuse("a column has no fewer than no rows");
    std::vector<std::int64_t> places;
    if (!read_places(parts[2], places) || !read_nulls(layout, places)) return false;
    const Shape shape = schema.dictionary == nullptr ? shape_of(schema.format) : Shape{Shape::Kind::unknown};
    return read_buffers(shape, places, layout) && read_children(schema, parts[3], layout) &&
           is_whole(shape, places, layout);
  }

 private:
  static bool is_sequence(PyObject* object) { return PyTuple_CheckExact(object) || PyList_CheckExact(object); }

  static bool unpack(PyObject* node, PyObject* (&parts)[4]) {
    if (!is_sequence(node) || PySequence_Fast_GET_SIZE(node) != 4) return false;
    for (Py_ssize_t i = 0; i < 4; ++i) parts[i] = PySequence_Fast_GET_ITEM(node, i);
    return is_sequence(parts[2]) && is_sequence(parts[3]);
  }

  [[nodiscard]] std::span<std::byte> bytes_at(std::int64_t place) const {
    return block_.buffer(static_cast<std::uint32_t>(place));
  }

  bool read_places(PyObject* sequence, std::vector<std::int64_t>& places) const {
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    for (Py_ssize_t i = 0; i < count; ++i) {
      const std::int64_t place = PyLong_AsLongLong(PySequence_Fast_GET_ITEM(sequence, i));
      if (place == -1 && PyErr_Occurred() != nullptr) return false;
      const bool is_validity = i == 0;
      if (place == kNoBuffer ? !is_validity : place < 0 || place >= buffer_count_) {
        return refuse("this block has no such buffer");
      }
      places.push_back(place);
    }
    return true;
  }

  bool read_nulls(Layout& layout, const std::vector<std::int64_t>& places) const {
    if (layout.null_count == kNullsInBuffer) {
      if (buffer_count_ == 0 || bytes_at(0).size() < sizeof layout.null_count) {
        return refuse("this block has no number of nulls");
      }
      std::memcpy(&layout.null_count, bytes_at(0).data(), sizeof layout.null_count);
    }
    if (layout.null_count < 0 || layout.null_count > layout.length) return refuse("there are more nulls than rows");
    if (places.empty() || layout.null_count == 0) return true;
    const std::size_t needed = (static_cast<std::uint64_t>(layout.length) + 7) / 8;
    return (places[0] != kNoBuffer && bytes_at(places[0]).size() >= needed) || refuse("validity bits are missing");
  }

  bool read_buffers(Shape shape, const std::vector<std::int64_t>& places, Layout& layout) const {
    using Kind = Shape::Kind;
    const auto length = static_cast<std::uint64_t>(layout.length);
    std::size_t wanted = 0;  // buffers
    std::uint64_t needed = 0;  // bytes of the first after the validity bits
    switch (shape.kind) {
      case Kind::unknown: return refuse("this type is laid out otherwise");
      case Kind::nothing: break;
      case Kind::values: wanted = 2, needed = (length * shape.unit + 7) / 8; break;
      case Kind::strings: wanted = 3, needed = (length + 1) * shape.unit; break;
      case Kind::views: wanted = std::max<std::size_t>(places.size(), 2), needed = 16 * length; break;
      case Kind::lists: wanted = 2, needed = (length + 1) * shape.unit; break;
      case Kind::fixed_lists: case Kind::structs: wanted = 1; break;
    }
    if (places.size() != wanted) return refuse("this type has other buffers");
    if (wanted > 1 && bytes_at(places[1]).size() < needed) return refuse("values are missing");
    for (std::size_t i = 0; i < wanted; ++i) {
      const bool is_left_out = i == 0 && layout.null_count == 0;
      layout.buffers.push_back(is_left_out ? nullptr : bytes_at(places[i]).data());
    }
    if (shape.kind != Kind::views) return true;
    for (std::size_t i = 2; i < wanted; ++i) {
      layout.view_bytes.push_back(static_cast<std::int64_t>(bytes_at(places[i]).size()));
    }
    layout.buffers.push_back(layout.view_bytes.data());
    return true;
  }

  bool read_children(const ArrowSchema& schema, PyObject* nodes, Layout& layout) {
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(nodes);
    if (count != schema.n_children) return refuse("this type has other children");
    layout.children.resize(static_cast<std::size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* node = PySequence_Fast_GET_ITEM(nodes, i);
      if (!read(*schema.children[i], node, layout.children[static_cast<std::size_t>(i)])) return false;
    }
    return true;
  }

  // Whether what the array points into is there: data behind its last offset, items of its lists, rows of its fields.
  bool is_whole(Shape shape, const std::vector<std::int64_t>& places, const Layout& layout) const {
    using Kind = Shape::Kind;
    const bool has_offsets = shape.kind == Kind::strings || shape.kind == Kind::lists;
    std::uint64_t needed = 0;
    if (has_offsets) {
      const std::byte* at = bytes_at(places[1]).data() + static_cast<std::uint64_t>(layout.length) * shape.unit;
      std::int32_t small = 0;
      std::int64_t last = 0;
      if (shape.unit == 4) {
        std::memcpy(&small, at, sizeof small);
        last = small;
      } else {
        std::memcpy(&last, at, sizeof last);
      }
      if (last < 0) return refuse("an offset is negative");
      needed = static_cast<std::uint64_t>(last);
    } else {
      needed = static_cast<std::uint64_t>(layout.length) * (shape.kind == Kind::fixed_lists ? shape.unit : 1);
    }
    if (shape.kind == Kind::strings) return bytes_at(places[2]).size() >= needed || refuse("data is missing");
    for (const Layout& child : layout.children) {
      if (static_cast<std::uint64_t>(child.length) < needed) return refuse("a child has too few rows");
    }
    return true;
  }

  heap::Block block_;
  std::int64_t buffer_count_;
};

}  // namespace

bool read_layout(const PinObject* pin, const ArrowSchema& schema, PyObject* node, Layout& layout) {
  return Reader(pin).read(schema, node, layout);
}

}  // namespace drust::bind
