/**
 * Puts weights that ONNX Runtime has written beside a graph where its kernels can read them. It writes them one after
 * the other, and 1.30 aligns only those of 1 MiB and more. But its 4- and 8-bit kernels expect packed matrices at
 * aligned addresses and compute NaN otherwise. In memory that maps the file, addresses are aligned as offsets are.
 */
import { type FileHandle, open, readFile, writeFile } from 'node:fs/promises';
import { field, fieldsOf } from '../model/graph/onnx.ts';
import { GRAPH_INITIALIZER, MODEL_GRAPH } from '../model/graph/raw-graph.ts';
import { ServingError } from '../process/errors.ts';

/** Every weight begins at a multiple of this, in bytes: as much as kernels load at once. */
const ALIGNMENT = 64;

/** Field numbers of onnx.proto. */
const TENSOR_EXTERNAL_DATA = 13;
const ENTRY_KEY = 1;
const ENTRY_VALUE = 2;

/** The places of packed matrices: `OPERATOR+HASH|offset;bytes;padding|…`. */
const PACKED_PLACES = /^\w+\+\d+(?:\|\d+;\d+;\d+)+$/;

/**
 * Moves all weights that are not aligned to the end of their file. Their old places stay, which nothing reads: 4 % of
 * the file at 0.5B with 8-bit weights.
 * @param graph path of the graph's file, which is written anew. @param weights path of the one file of its weights.
 * @throws ServingError runtime_unsupported if the places of packed matrices have an unknown form.
 */
export async function alignWeights(graph: string, weights: string): Promise<void> {
  const file = await open(weights, 'r+');
  try {
    const model = await readFile(graph);
    const mover = new Mover(file, (await file.stat()).size);
    const moved = await mapFields(model, MODEL_GRAPH, (each) =>
      mapFields(each, GRAPH_INITIALIZER, (tensor) => mover.move(tensor)),
    );
    await writeFile(graph, moved);
  } finally {
    await file.close();
  }
}

/** A message in which the content of each field of one number is changed. */
async function mapFields(
  message: Uint8Array,
  number: number,
  change: (content: Uint8Array) => Promise<Uint8Array>,
): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for (const each of fieldsOf(message)) {
    parts.push(each.number === number ? field(number, await change(each.content)) : each.whole);
  }
  return Buffer.concat(parts);
}

class Mover {
  readonly #file: FileHandle;
  #end: number;

  constructor(file: FileHandle, end: number) {
    this.#file = file;
    this.#end = end;
  }

  /** @returns the tensor with the places at which its bytes and its packed forms now lie. */
  async move(tensor: Uint8Array): Promise<Uint8Array> {
    const values = new Map(
      fieldsOf(tensor)
        .filter(({ number }) => number === TENSOR_EXTERNAL_DATA)
        .map(({ content }) => entryOf(content)),
    );
    return mapFields(tensor, TENSOR_EXTERNAL_DATA, async (content) => {
      const [key, value] = entryOf(content);
      if (key === 'offset') return entry(key, String(await this.#aligned(Number(value), Number(values.get('length')))));
      return key.startsWith('prepacked_') ? entry(key, await this.#packedPlaces(value)) : content;
    });
  }

  async #packedPlaces(text: string): Promise<string> {
    if (!PACKED_PLACES.test(text)) {
      const reason = `ONNX Runtime wrote the places of packed matrices in an unknown form, '${text}'`;
      throw new ServingError('runtime_unsupported', `${reason}: set --prepacked off`);
    }
    const [operator, ...places] = text.split('|');
    const moved: string[] = [];
    for (const place of places) {
      const [offset, bytes, padding] = place.split(';');
      moved.push([await this.#aligned(Number(offset), Number(bytes)), bytes, padding].join(';'));
    }
    return [operator, ...moved].join('|');
  }

  /** @returns the aligned offset at which the bytes now lie. */
  async #aligned(offset: number, length: number): Promise<number> {
    if (offset % ALIGNMENT === 0) return offset;
    const to = Math.ceil(this.#end / ALIGNMENT) * ALIGNMENT;
    const bytes = new Uint8Array(length); // below 1 MiB
    const { bytesRead } = await this.#file.read(bytes, 0, length, offset);
    const { bytesWritten } = await this.#file.write(bytes, 0, length, to);
    if (bytesRead < length || bytesWritten < length) {
      throw new ServingError('runtime_failed', `a weight of ${length} bytes at ${offset} cannot be moved`);
    }
    this.#end = to + length;
    return to;
  }
}

/** Key and value of an entry of a tensor's external data. */
function entryOf(content: Uint8Array): readonly [string, string] {
  const text = (wanted: number) =>
    Buffer.from(fieldsOf(content).find(({ number }) => number === wanted)?.content ?? '').toString();
  return [text(ENTRY_KEY), text(ENTRY_VALUE)];
}

const entry = (key: string, value: string): Uint8Array =>
  Buffer.concat([field(ENTRY_KEY, key), field(ENTRY_VALUE, value)]);
