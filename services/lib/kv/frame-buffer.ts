/**
 * Buffers for the rows of KV frames that become messages where they lie: there is room before the data for the fields
 * that precede it, and the buffer is used again once gRPC has copied it. Serialising the usual way copies each frame once
 * more, and every buffer that is dropped brings the next garbage collection nearer.
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
 * KvFrame's tag and length (6 bytes), Rows' four numbers (24), the CRC (5), data's tag and length (6); rounded up, so
 * that the data lie where floats may.
 */
const HEADROOM = 48;
/** Buffers kept for use: what may be under way in a few streams at once. */
const KEPT = 8;
/** Field numbers of kv.proto with their wire types. */
const TAG = { rows: 0x12, start: 0x08, end: 0x10, rowStart: 0x18, rowEnd: 0x20, crc32: 0x2d, data: 0x32 };

/** The smallest first: a frame takes the smallest that it fits into. */
const spare: Buffer[] = [];
/** The whole buffers of those that {@link allocateRows} gave out. */
const whole = new WeakMap<Uint8Array, Buffer>();

/** A buffer for the data of one rows frame, not zeroed. It is anybody's again once the frame has been serialised. */
export function allocateRows(bytes: number): Buffer {
  const at = spare.findIndex((buffer) => buffer.length >= HEADROOM + bytes);
  const buffer = spare.splice(at, at < 0 ? 0 : 1)[0] ?? Buffer.allocUnsafeSlow(HEADROOM + bytes);
  const data = buffer.subarray(HEADROOM, HEADROOM + bytes);
  whole.set(data, buffer);
  return data;
}

/** As a serialiser of KvFrame; `usual` takes frames whose data are not of {@link allocateRows}. */
export function serializeFrame<F extends RowsFrame>(frame: F, usual: (frame: F) => Buffer): Buffer {
  const { rows } = frame;
  const buffer = rows?.data instanceof Uint8Array ? whole.get(rows.data) : undefined;
  if (!rows || !buffer) return usual(frame);
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
  // The outer tag and length stand first.
  const from = HEADROOM - end;
  fields.copy(buffer, from, inner, end);
  fields.copy(buffer, from + end - inner, 0, inner);
  whole.delete(rows.data as Uint8Array);
  // gRPC copies the message behind its own header in the same turn of the event loop.
  queueMicrotask(() => keep(buffer));
  return buffer.subarray(from, HEADROOM + length);
}

/** The smallest goes where there are too many: large frames are the ones that are dear to allocate. */
function keep(buffer: Buffer): void {
  const at = spare.findIndex(({ length }) => length >= buffer.length);
  spare.splice(at < 0 ? spare.length : at, 0, buffer);
  if (spare.length > KEPT) spare.shift();
}
