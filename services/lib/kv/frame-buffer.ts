/**
 * Buffers for the rows of KV frames. A frame becomes a gRPC message in place: its buffer has room before the data for
 * the fields that precede it, and is used again once gRPC has copied the message. The generated serialiser would copy
 * each frame once more, and every dropped buffer would bring the next garbage collection nearer.
 */

/** The fields of a KvFrame message (kv.proto) that are written here by hand. */
export interface RowsFrame {
  readonly rows?: {
    readonly start?: number;
    readonly end?: number;
    readonly rowStart?: number;
    readonly rowEnd?: number;
    readonly crc32?: number;
    readonly data?: Uint8Array | string;
  } | null;
}

/**
 * Bytes before the data: KvFrame's tag and length (6), the four numbers of Rows (24), the CRC (5), the tag and length
 * of `data` (6), rounded up so that the data are aligned for floats.
 */
const HEADROOM = 48;
/** Spare buffers kept: as many as a few streams use at once. */
const MAX_SPARE = 8;
/** Field numbers of kv.proto with their wire types. */
const TAG = { rows: 0x12, start: 0x08, end: 0x10, rowStart: 0x18, rowEnd: 0x20, crc32: 0x2d, data: 0x32 };

/** Spare buffers in order of size. A frame takes the smallest one that it fits into. */
const spare: Buffer[] = [];
/** The whole buffer of each `data` that {@link allocateRows} returned. */
const whole = new WeakMap<Uint8Array, Buffer>();

/**
 * A buffer for the data of one frame, not zeroed. It belongs to the frame until {@link serializeFrame} has serialised
 * it and gRPC has copied the message; then other frames are written to it. A frame that is never serialised keeps it.
 */
export function allocateRows(bytes: number): Buffer {
  const at = spare.findIndex((buffer) => buffer.length >= HEADROOM + bytes);
  const buffer = spare.splice(at, at < 0 ? 0 : 1)[0] ?? Buffer.allocUnsafeSlow(HEADROOM + bytes);
  const data = buffer.subarray(HEADROOM, HEADROOM + bytes);
  whole.set(data, buffer);
  return data;
}

/**
 * Serialises a KvFrame. The message must be copied (as gRPC does) before anything is awaited.
 * @param generated serialises the frames whose data do not come from {@link allocateRows}.
 */
export function serializeFrame<F extends RowsFrame>(frame: F, generated: (frame: F) => Buffer): Buffer {
  const { rows } = frame;
  const buffer = rows?.data instanceof Uint8Array ? whole.get(rows.data) : undefined;
  if (!rows || !buffer) return generated(frame);
  const { length } = rows.data as Uint8Array;
  const fields = Buffer.allocUnsafe(HEADROOM);
  let end = 0;
  const varint = (value: number) => {
    for (; value > 0x7f; value >>>= 7) fields[end++] = (value & 0x7f) | 0x80;
    fields[end++] = value;
  };
  for (const field of ['start', 'end', 'rowStart', 'rowEnd'] as const) {
    fields[end++] = TAG[field];
    varint(rows[field] ?? 0);
  }
  fields[end++] = TAG.crc32;
  end = fields.writeUInt32LE(rows.crc32 ?? 0, end);
  fields[end++] = TAG.data;
  varint(length);
  const inner = end;
  fields[end++] = TAG.rows;
  varint(inner + length);
  // The outer tag and length were written last, but come first.
  const from = HEADROOM - end;
  fields.copy(buffer, from, inner, end);
  fields.copy(buffer, from + end - inner, 0, inner);
  whole.delete(rows.data as Uint8Array);
  // gRPC copies the message behind its own header in the same turn of the event loop.
  queueMicrotask(() => keep(buffer));
  return buffer.subarray(from, HEADROOM + length);
}

/** Drops the smallest when there are too many: large buffers are the expensive ones to allocate. */
function keep(buffer: Buffer): void {
  const at = spare.findIndex(({ length }) => length >= buffer.length);
  spare.splice(at < 0 ? spare.length : at, 0, buffer);
  if (spare.length > MAX_SPARE) spare.shift();
}
