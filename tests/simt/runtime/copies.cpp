// Asynchronous copies. What they deliver arrives at the wait for it, never earlier, and in the
// random schedule bulk loads at any time: until then the destination holds NaNs and is unreadable.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "machine.h"

namespace simt {

void complete_bytes(uint64_t* barrier, uint32_t bytes, uint32_t clock);
Mbarrier& mbarrier_of_copy(uint64_t* barrier, const Actor& who, const char* instruction);

// ---- cp.async

void copy_async(void* shared, const void* global, int bytes, int source_bytes) {
  Thread& self = *machine.current;
  if (source_bytes < 0 || source_bytes > bytes)
    fail("cp.async: the source size must be 0 to the copy's size");
  if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(global) % bytes)
    fail("cp.async: misaligned, both addresses must be multiples of the size");
  note_access();
  const Actor who = actor(self);
  if (source_bytes) check_access(who, global, source_bytes, Access::read, "cp.async");
  begin_copy(who, shared, bytes, "cp.async");
  Copy copy{static_cast<uint8_t*>(shared),
            static_cast<const uint8_t*>(global),
            bytes,
            source_bytes,
            machine.schedule == Schedule::reverse || machine.chance(2),
            {}};
  if (copy.taken && source_bytes) memcpy(copy.data, global, source_bytes);
  self.copies.push_back(copy);
}

void copy_commit() {
  Thread& self = *machine.current;
  self.copy_groups.push_back(std::move(self.copies));
  self.copies.clear();
}

void copy_wait(int pending) {
  Thread& self = *machine.current;
  while (static_cast<int>(self.copy_groups.size()) > pending) {
    for (Copy& copy : self.copy_groups.front()) {
      end_copy(actor(self), copy.shared, copy.bytes, "cp.async");
      memset(copy.shared, 0, copy.bytes);
      if (copy.source_bytes)
        memcpy(copy.shared, copy.taken ? copy.data : copy.global, copy.source_bytes);
    }
    self.copy_groups.pop_front();
  }
}

// ---- bulk and tensor copies

namespace {

// The tensor map as encode_tensor_map writes it.
struct Map {
  uint64_t magic;
  uint8_t* base;
  uint64_t strides[4];  // bytes
  uint32_t sizes[4], box[4];
  int16_t element_bytes, rank;
  int32_t swizzle;
};
static_assert(sizeof(Map) <= sizeof(taut::ptx::TensorMap));
constexpr uint64_t kMagic = 0x70616d726f736e74;

Map read_map(const taut::ptx::TensorMap* opaque, int dimensions, const char* instruction) {
  Map map;
  memcpy(&map, opaque, sizeof map);
  if (map.magic != kMagic) fail(std::string(instruction) + ": this is no tensor map");
  if (map.rank != dimensions)
    fail(std::string(instruction) + ": the tensor map has " + std::to_string(map.rank) +
         " dimensions, the copy " + std::to_string(dimensions));
  return map;
}

uint8_t* swizzled(uint8_t* shared, int swizzle) {
  if (!swizzle) return shared;
  const uint32_t address = shared_address(shared);
  return shared - address + (address ^ (address >> 3 & 0x70));
}

// The pieces of a box at `coordinates`: runs of elements within 16 bytes that are inside of the
// tensor, or outside.
std::vector<BulkCopy::Piece> pieces_of(const Map& map, uint8_t* shared, const int* coordinates) {
  std::vector<BulkCopy::Piece> pieces;
  const uint32_t row_bytes = map.box[0] * map.element_bytes;
  uint32_t rows = 1;
  for (int d = 1; d < map.rank; ++d) rows *= map.box[d];
  for (uint32_t row = 0; row < rows; ++row) {
    bool inside = true;
    uint8_t* global = map.base;
    uint32_t rest = row;
    for (int d = 1; d < map.rank; ++d) {
      const int64_t c = int64_t{coordinates[d]} + rest % map.box[d];
      rest /= map.box[d];
      inside &= c >= 0 && c < map.sizes[d];
      global += c * static_cast<int64_t>(map.strides[d]);
    }
    for (uint32_t begin = 0; begin < row_bytes; begin += map.element_bytes) {
      const int64_t c = int64_t{coordinates[0]} + begin / map.element_bytes;
      uint8_t* source =
          inside && c >= 0 && c < map.sizes[0] ? global + c * map.element_bytes : nullptr;
      BulkCopy::Piece* last = pieces.empty() ? nullptr : &pieces.back();
      if (begin % 16 &&
          (source ? last->global && last->global + last->bytes == source : !last->global)) {
        last->bytes += map.element_bytes;
        continue;
      }
      uint8_t* chunk = swizzled(shared + row * row_bytes + begin / 16 * 16, map.swizzle);
      pieces.push_back({chunk + begin % 16, source, static_cast<uint32_t>(map.element_bytes)});
    }
  }
  return pieces;
}

void check_shared_start(const void* shared, uint32_t alignment, const char* instruction) {
  if (!is_shared(shared) || reinterpret_cast<uintptr_t>(shared) % alignment)
    fail(std::string(instruction) + ": the shared address must be a multiple of " +
         std::to_string(alignment));
}

void check_bulk(const void* global, uint32_t bytes, const char* instruction) {
  if (reinterpret_cast<uintptr_t>(global) % 16 || bytes % 16)
    fail(std::string(instruction) + ": address and size must be multiples of 16");
}

void begin_load(std::vector<BulkCopy::Piece> pieces, uint64_t* barrier, const char* instruction) {
  const Thread& self = *machine.current;
  Actor who = actor(self);
  who.proxy = Proxy::async;
  mbarrier_of_copy(barrier, who, instruction);
  BulkCopy copy{std::move(pieces), 0, barrier, self.id, self.order, 0};
  for (const auto& piece : copy.pieces) {
    note_access();
    if (piece.global) check_access(who, piece.global, piece.bytes, Access::read, instruction);
    begin_copy(who, piece.shared, piece.bytes, instruction);
    copy.bytes += piece.bytes;
  }
  machine.loads.push_back(std::move(copy));
}

void land(size_t index) {
  const BulkCopy copy = std::move(machine.loads[index]);
  machine.loads.erase(machine.loads.begin() + index);
  for (Mbarrier& m : machine.mbarriers) {
    if (m.address != copy.barrier) continue;
    const Actor who{&machine.threads[copy.thread], m.agent, ++m.clock, &copy.order, Proxy::async};
    for (const auto& piece : copy.pieces) {
      end_copy(who, piece.shared, piece.bytes, "a bulk load");
      if (piece.global)
        memcpy(piece.shared, piece.global, piece.bytes);
      else
        memset(piece.shared, 0, piece.bytes);
    }
    complete_bytes(copy.barrier, copy.bytes, m.clock);
    return;
  }
  fail_as(machine.threads[copy.thread], "a bulk load outlived its mbarrier");
}

void begin_store(std::vector<BulkCopy::Piece> pieces, const char* instruction) {
  Thread& self = *machine.current;
  if (self.store_agent < 0) self.store_agent = machine.new_agent();
  const uint32_t clock = self.order[self.store_agent] + self.store_groups.size() + 1;
  const Actor who{&self, self.store_agent, clock, &self.order, Proxy::async};
  for (const auto& piece : pieces) {
    note_access();
    if (!piece.global) continue;
    check_access(who, piece.shared, piece.bytes, Access::read, instruction);
    check_access(who, piece.global, piece.bytes, Access::write, instruction);
  }
  self.stores.push_back({std::move(pieces), 0, nullptr, self.id, {}, clock});
}

}  // namespace

void prefetch_tensor_map(const taut::ptx::TensorMap* map) {
  uint64_t magic;
  memcpy(&magic, map, 8);
  if (magic != kMagic) fail("prefetch.tensormap: this is no tensor map");
}

void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  check_shared_start(shared, 16, "cp.async.bulk");
  check_bulk(global, bytes, "cp.async.bulk");
  begin_load(
      {{static_cast<uint8_t*>(shared), static_cast<uint8_t*>(const_cast<void*>(global)), bytes}},
      barrier, "cp.async.bulk");
}

void bulk_store(void* global, const void* shared, uint32_t bytes) {
  check_shared_start(shared, 16, "cp.async.bulk");
  check_bulk(global, bytes, "cp.async.bulk");
  begin_store(
      {{static_cast<uint8_t*>(const_cast<void*>(shared)), static_cast<uint8_t*>(global), bytes}},
      "cp.async.bulk");
}

void tensor_load(void* shared, const taut::ptx::TensorMap* opaque, uint64_t* barrier,
                 int dimensions, const int* coordinates) {
  const char* name = "cp.async.bulk.tensor";
  const Map map = read_map(opaque, dimensions, name);
  check_shared_start(shared, 128, name);
  begin_load(pieces_of(map, static_cast<uint8_t*>(shared), coordinates), barrier, name);
}

void tensor_store(const taut::ptx::TensorMap* opaque, const void* shared, int dimensions,
                  const int* coordinates) {
  const char* name = "cp.async.bulk.tensor (store)";
  const Map map = read_map(opaque, dimensions, name);
  check_shared_start(shared, 128, name);
  auto start = static_cast<uint8_t*>(const_cast<void*>(shared));
  begin_store(pieces_of(map, start, coordinates), name);
}

void bulk_commit() {
  Thread& self = *machine.current;
  self.store_groups.push_back(std::move(self.stores));
  self.stores.clear();
}

void bulk_wait(int pending, bool read_only) {
  (void)read_only;  // reading and writing end together here
  Thread& self = *machine.current;
  while (static_cast<int>(self.store_groups.size()) > pending) {
    for (const BulkCopy& copy : self.store_groups.front())
      for (const auto& piece : copy.pieces)
        if (piece.global) memcpy(piece.global, piece.shared, piece.bytes);
    self.store_groups.pop_front();
    if (self.store_agent >= 0) ++self.order[self.store_agent];
  }
}

bool land_a_load() {
  if (machine.loads.empty()) return false;
  const size_t last = machine.loads.size() - 1;
  land(machine.schedule == Schedule::forward   ? 0
       : machine.schedule == Schedule::reverse ? last
                                               : machine.random() % (last + 1));
  return true;
}

void land_randomly() {
  if (!machine.loads.empty() && machine.chance(16)) land_a_load();
}

void check_stores_done(const Thread& thread) {
  if (!thread.stores.empty() || !thread.store_groups.empty())
    fail_as(thread, "returns while its bulk stores are under way: nothing waited for them");
}

void check_loads_done() {
  if (!machine.loads.empty())
    fail_as(machine.threads[machine.loads[0].thread],
            "issued a bulk load that nothing waited for before the block ended");
}

taut::ptx::TensorMap encode_tensor_map(const void* base, int element_bytes, int rank,
                                       const uint64_t* sizes, const uint64_t* strides,
                                       const uint32_t* box, int swizzle) {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw std::runtime_error(std::string("encode_tensor_map: ") + what);
  };
  require(rank >= 2 && rank <= 4, "rank must be 2 to 4");
  require(reinterpret_cast<uintptr_t>(base) % 16 == 0, "base must be a multiple of 16");
  require(element_bytes == 1 || element_bytes == 2 || element_bytes == 4 || element_bytes == 8,
          "element_bytes must be 1, 2, 4 or 8");
  require(swizzle == 0 || swizzle == 128, "swizzle must be 0 or 128");
  require(box[0] * element_bytes % 16 == 0,
          "the box's inner dimension must be a multiple of 16 bytes");
  require(!swizzle || box[0] * element_bytes <= 128,
          "the box's inner dimension must be at most 128 bytes with this swizzle");
  Map map{kMagic,
          static_cast<uint8_t*>(const_cast<void*>(base)),
          {},
          {},
          {},
          static_cast<int16_t>(element_bytes),
          static_cast<int16_t>(rank),
          swizzle};
  for (int d = 0; d < rank; ++d) {
    require(box[d] >= 1 && box[d] <= 256, "box dimensions must be 1 to 256");
    require(sizes[d] >= 1 && sizes[d] < 1ull << 32, "sizes must be 1 to 2^32 - 1");
    require(d == 0 || strides[d - 1] % 16 == 0, "strides must be multiples of 16");
    map.sizes[d] = sizes[d];
    map.box[d] = box[d];
    map.strides[d] = d ? strides[d - 1] : element_bytes;
  }
  taut::ptx::TensorMap opaque{};
  memcpy(&opaque, &map, sizeof map);
  return opaque;
}

}  // namespace simt
