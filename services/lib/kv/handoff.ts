/**
 * A KV cache as frames: how the sender packs them and how the receiver checks and unpacks them. The receiver accepts
 * frames only in the order of {@link planFrames}, each with its CRC, and an end that proves that none is missing. Each
 * side asks its store for one frame at a time.
 *
 * The sender's frames lie in buffers of frame-buffer.ts, which are used again for later frames once gRPC has serialised
 * a frame: to keep a frame for longer, copy it.
 */
import { crc32 } from 'node:zlib';
import { ServingError } from '../process/errors.ts';
import { allocateRows } from './frame-buffer.ts';
import { describeLayout, FRAME_BYTES, type KvLayout, type KvRange, planFrames, rowCount } from './layout.ts';
import type { KvStore, RowWriter } from './store.ts';
import { decodeRow, encodeRow, vectorBytes, type WireType } from './wire.ts';

/** The content of the first frame. */
export interface KvManifest {
  readonly fingerprint: string;
  readonly layout: KvLayout;
  readonly dtype: string;
  /** Prompt positions that will follow. */
  readonly positions: number;
}

export interface KvRows extends KvRange {
  /** CRC-32 of `data`. */
  readonly crc32: number;
  /** Rows [rowStart, rowEnd), one after the other, in the form of the {@link WireType}. */
  readonly data: Uint8Array;
}

/** The content of the last frame; the receiver compares it with what it has got. */
export interface KvEnd {
  readonly frames: number;
  readonly bytes: number;
  /** CRC-32 over the frames' CRCs and then the first tokens, each 4 bytes little-endian. */
  readonly digest: number;
  /** Sampled continuation of the prompt, one per choice. */
  readonly firstTokenIds: number[];
}

/** Running totals of a stream of frames; both sides keep one. */
class Tally {
  frames = 0;
  bytes = 0;
  digest = 0;

  add(frame: KvRows): void {
    this.digest = crc32(Buffer.from(Uint32Array.of(frame.crc32).buffer), this.digest);
    this.bytes += frame.data.byteLength;
    this.frames++;
  }

  digestWith(firstTokenIds: readonly number[]): number {
    if (firstTokenIds.length === 0) return this.digest; // crc32 of an empty buffer is 0, whatever CRC it continues
    return crc32(Buffer.from(Int32Array.from(firstTokenIds).buffer), this.digest);
  }
}

/** Packs finished positions of one slot, frame by frame. */
export class KvSender {
  readonly #store: KvStore;
  readonly #slot: number;
  readonly #type: WireType;
  readonly #tally = new Tally();

  /** @throws TypeError for another type than that of a store whose values are not float32: they travel as they are. */
  constructor(store: KvStore, slot: number, type: WireType = 'float32') {
    assertConvertible(store, type);
    this.#store = store;
    this.#slot = slot;
    this.#type = type;
  }

  /**
   * Frames of positions [start, end). Their data are copies, so that the slot may change afterwards. A frame's data are
   * valid until gRPC has serialised it; see {@link allocateRows}.
   */
  async *pack(start: number, end: number): AsyncGenerator<KvRows> {
    const { headDim } = this.#store.layout;
    const vector = vectorBytes(this.#type, headDim);
    // planFrames counts in float32. This gives frames of the same size on the wire for every type.
    const frameBytes = Math.floor((FRAME_BYTES * headDim * 4) / vector);
    for (const range of planFrames(this.#store.layout, start, end, frameBytes)) {
      const read = this.#store.read(this.#slot, range);
      // Views of the slot's memory are copied in the same turn of the event loop: later the slot may be another's.
      const frame = this.#frame(range, vector, read instanceof Promise ? await read : read);
      this.#tally.add(frame);
      yield frame;
    }
  }

  #frame(range: KvRange, vector: number, rows: readonly Uint8Array[]): KvRows {
    const { layout, type } = this.#store;
    const rowBytes = (range.end - range.start) * vector;
    const data = allocateRows(rows.length * rowBytes);
    let crc = 0;
    for (const [i, row] of rows.entries()) {
      const encoded = data.subarray(i * rowBytes, (i + 1) * rowBytes);
      if (this.#type === type) encoded.set(row);
      else encodeRow(this.#type, floatsOf(row), layout.headDim, encoded);
      crc = crc32(encoded, crc); // row by row, while the row is in the CPU's cache
    }
    return { ...range, data, crc32: crc };
  }

  end(firstTokenIds: readonly number[]): KvEnd {
    const { frames, bytes } = this.#tally;
    return { frames, bytes, digest: this.#tally.digestWith(firstTokenIds), firstTokenIds: [...firstTokenIds] };
  }
}

/** Writes a stream of frames into one slot, checking each. */
export class KvReceiver {
  readonly #store: KvStore;
  readonly #slot: number;
  readonly #fingerprint: string;
  readonly #type: WireType;
  readonly #tally = new Tally();
  #positions = -1;
  /** The place at which the next frame must begin. */
  #next = { start: 0, end: 0, row: 0 };

  /**
   * @param type the form that the sender was asked for.
   * @throws TypeError for another type than that of a store whose values are not float32: they travel as they are.
   */
  constructor(store: KvStore, slot: number, fingerprint: string, type: WireType = 'float32') {
    assertConvertible(store, type);
    this.#store = store;
    this.#slot = slot;
    this.#fingerprint = fingerprint;
    this.#type = type;
  }

  get bytes(): number {
    return this.#tally.bytes;
  }

  /** @throws ServingError fingerprint_mismatch, kv_layout_mismatch or context_length_exceeded. */
  manifest(manifest: KvManifest): void {
    const mine = this.#store.layout;
    if (manifest.fingerprint !== this.#fingerprint) {
      throw new ServingError(
        'fingerprint_mismatch',
        `the KV cache is of model ${manifest.fingerprint}, this worker serves ${this.#fingerprint}`,
      );
    }
    const same =
      manifest.dtype === this.#type &&
      manifest.layout.layers === mine.layers &&
      manifest.layout.kvHeads === mine.kvHeads &&
      manifest.layout.headDim === mine.headDim;
    if (!same) {
      throw new ServingError(
        'kv_layout_mismatch',
        `the KV cache is ${describeLayout(manifest.layout)} of ${manifest.dtype}, this worker takes ` +
          `${describeLayout(mine)} of ${this.#type}`,
      );
    }
    if (manifest.positions >= this.#store.capacity) {
      throw new ServingError(
        'context_length_exceeded',
        `the KV cache has ${manifest.positions} positions, a slot here holds ${this.#store.capacity}`,
      );
    }
    this.#positions = manifest.positions;
  }

  /**
   * Writes the next frame. Unless it is written at once, the caller waits for the promise before it goes on with the
   * next frame, or gives the slot away.
   * @throws ServingError kv_digest_mismatch for damaged bytes, kv_truncated for a frame that is not the next one; at
   *   once, before anything is written.
   */
  rows(frame: KvRows): void | Promise<void> {
    const rowBytes = (frame.end - frame.start) * vectorBytes(this.#type, this.#store.layout.headDim);
    if (!this.#isNext(frame) || frame.data.byteLength !== (frame.rowEnd - frame.rowStart) * rowBytes) {
      throw new ServingError(
        'kv_truncated',
        `KV frame ${this.#tally.frames} is rows [${frame.rowStart}, ${frame.rowEnd}) of positions ` +
          `[${frame.start}, ${frame.end}) in ${frame.data.byteLength} bytes; expected row ${this.#next.row} from ` +
          `position ${this.#next.start} of ${this.#positions}`,
      );
    }
    const crc = crc32(frame.data);
    if (crc !== frame.crc32) {
      throw new ServingError(
        'kv_digest_mismatch',
        `KV frame ${this.#tally.frames} was damaged on the way: CRC-32 ${hex(crc)}, sent as ${hex(frame.crc32)}`,
      );
    }
    this.#tally.add(frame);
    const done = frame.rowEnd === rowCount(this.#store.layout);
    this.#next = done
      ? { start: frame.end, end: 0, row: 0 }
      : { start: frame.start, end: frame.end, row: frame.rowEnd };
    return this.#store.write(this.#slot, rangeOf(frame), this.#rowsOf(frame, rowBytes));
  }

  /** The frame's values as the store takes them. */
  #rowsOf({ data }: KvRows, rowBytes: number): Uint8Array | RowWriter {
    const { layout, type } = this.#store;
    if (this.#type === type) return data;
    return (index, to) => {
      const encoded = data.subarray(index * rowBytes, (index + 1) * rowBytes);
      decodeRow(this.#type, encoded, layout.headDim, floatsOf(to));
    };
  }

  /** @throws ServingError kv_truncated or kv_digest_mismatch unless exactly what was sent has come. */
  end(end: KvEnd): void {
    if (this.#next.start !== this.#positions || this.#next.row !== 0 || end.frames !== this.#tally.frames) {
      throw new ServingError(
        'kv_truncated',
        `the KV stream ended at position ${this.#next.start} of ${this.#positions}, after ${this.#tally.frames} of ${end.frames} frames`,
      );
    }
    const digest = this.#tally.digestWith(end.firstTokenIds);
    if (end.digest !== digest || end.bytes !== this.#tally.bytes) {
      throw new ServingError(
        'kv_digest_mismatch',
        `the KV stream's digest is ${hex(digest)}, sent as ${hex(end.digest)}`,
      );
    }
  }

  #isNext(frame: KvRange): boolean {
    const next = this.#next;
    return (
      frame.start === next.start &&
      frame.rowStart === next.row &&
      frame.rowEnd > frame.rowStart &&
      frame.rowEnd <= rowCount(this.#store.layout) &&
      (next.row === 0 ? frame.end > frame.start && frame.end <= this.#positions : frame.end === next.end)
    );
  }
}

const rangeOf = ({ start, end, rowStart, rowEnd }: KvRange): KvRange => ({ start, end, rowStart, rowEnd });

/** The values of a row of float32: the same memory. */
const floatsOf = (row: Uint8Array) => new Float32Array(row.buffer, row.byteOffset, row.length / 4);

function assertConvertible(store: KvStore, type: WireType): void {
  if (type !== store.type && store.type !== 'float32')
    throw new TypeError(`a store of ${store.type} holds no 32-bit floats`);
}

const hex = (crc: number) => crc.toString(16).padStart(8, '0');
