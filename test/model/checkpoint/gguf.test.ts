/** GGUF files: numbers bit by bit, networks as in the Hugging Face folders that they were made from, and refusals. */
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { GGML_TYPES } from '../../../services/lib/model/checkpoint/ggml-types.ts';
import { GgufFile } from '../../../services/lib/model/checkpoint/gguf-file.ts';
import { parseGgufHeader } from '../../../services/lib/model/checkpoint/gguf-header.ts';
import { SafetensorsFile } from '../../../services/lib/model/checkpoint/safetensors.ts';
import { openSourceNetwork } from '../../../services/lib/model/checkpoint/source-network.ts';
import type { DecoderSpec } from '../../../services/lib/model/checkpoint/spec.ts';
import { buildDecoder } from '../../../services/lib/model/graph/decoder.ts';
import type { Graph } from '../../../services/lib/model/graph/graph.ts';
import {
  type GgufPair,
  type GgufTensorBytes,
  ggufBytes,
  ggufOf,
  networkPairs,
  STORED,
  tokenizerPairs,
} from '../../support/gguf.ts';
import { GOLDENS, readJsonFile, temporaryFolder } from '../../support/models.ts';

const folder = await temporaryFolder();
async function write(name: string, bytes: Uint8Array): Promise<string> {
  await writeFile(join(folder, name), bytes);
  return join(folder, name);
}

const bits = (values: Float32Array) => new Uint32Array(values.buffer, values.byteOffset, values.length);
const { types } = await readJsonFile<{ types: Record<string, { type: number; bytes: string; values: string }> }>(
  join(GOLDENS, 'gguf/blocks.json'),
);

test('there is a golden for every type', () => {
  expect(Object.values(types).map(({ type }) => type)).toEqual([...GGML_TYPES.keys()].sort(inOrderOf(types)));
});

/** Compares types by their place in the golden file. */
function inOrderOf(goldens: typeof types) {
  const order = Object.values(goldens).map(({ type }) => type);
  return (a: number, b: number) => order.indexOf(a) - order.indexOf(b);
}

describe.each(Object.entries(types))('%s', (name, golden) => {
  const bytes = Buffer.from(golden.bytes, 'base64');
  const expected = new Float32Array(new Uint8Array(Buffer.from(golden.values, 'base64')).buffer);

  test(`${name} has the values of llama.cpp's package, bit by bit`, async () => {
    const tensor = { name: 'values', shape: [3, 256], type: golden.type, bytes };
    const file = await GgufFile.open(await write(`${name}.gguf`, ggufBytes([], [tensor])));
    try {
      expect(file.tensors.get('values')).toMatchObject({ shape: [3, 256], type: { name } });
      expect(bits(await file.read('values'))).toEqual(bits(expected));
      const read = file.levels('values');
      expect(read !== undefined).toBe(['Q4_0', 'Q5_0', 'Q8_0'].includes(name));
      if (read === undefined) return;
      const { levels, scales } = await read();
      const values = Float32Array.from(levels, (level, i) => level * scales[i >> 5]!);
      expect(bits(values)).toEqual(bits(expected));
    } finally {
      await file.close();
    }
  });
});

const NETWORKS = ['llama', 'qwen2-tied'];

async function namesOf(dir: string): Promise<string[]> {
  const file = await SafetensorsFile.open(join(dir, 'model.safetensors'));
  await file.close();
  return [...file.tensors.keys()];
}

describe.each(NETWORKS)('a GGUF of %s', (golden) => {
  const dir = join(GOLDENS, golden);

  test(`a GGUF of ${golden} has the tensors, the architecture and the ids of its folder`, async () => {
    const names = await namesOf(dir);
    await using found = await openSourceNetwork(await write(`${golden}.gguf`, await ggufOf(dir, names, 'F32')));
    await using expected = await openSourceNetwork(dir);
    expect(found.name).toBe(golden);
    expect(found.spec).toEqual(expected.spec);
    expect(found.block).toBeUndefined();
    for (const name of names) expect(await found.weights.read(name), name).toEqual(await expected.weights.read(name));
  });

  test.each([
    ['Q4_0', 4],
    ['Q4_0', 8],
    ['Q8_0', 8],
  ] as const)(`weights of ${golden} in %s are stored in %d bits without a second rounding`, async (stored, width) => {
    const path = await write(`${golden}-${stored}.gguf`, await ggufOf(dir, await namesOf(dir), stored));
    await using network = await openSourceNetwork(path);
    expect(network.block).toBe(32);
    const format = { bits: width, block: network.block! } as const;
    const spec = network.spec as DecoderSpec;
    const graph = buildDecoder(spec, network.weights, { layers: format, vocabulary: format, maxPositions: 64 });
    expect(graph.matrices.size).toBeGreaterThan(4 * spec.layers);
    for (const [levels, { name, read }] of graph.matrices) {
      expect(bits(await dequantised(graph, levels, format)), name).toEqual(bits(await read()));
    }
  });
});

/** The numbers that the blocks of a graph stand for: (level - zero) * scale, as MatMulNBits multiplies with. */
async function dequantised(graph: Graph, name: string, { bits, block }: { bits: 4 | 8; block: number }) {
  const group = graph.weights.find(({ parts }) => parts[0]!.name === name)!;
  const [packed, scales] = (await group.produce()) as [Uint8Array, Float32Array];
  const level = (i: number) => (bits === 8 ? packed[i]! - 128 : ((packed[i >> 1]! >> (i & 1 ? 4 : 0)) & 15) - 8);
  return Float32Array.from({ length: (packed.length * 8) / bits }, (_, i) => level(i) * scales[Math.floor(i / block)]!);
}

describe('what cannot be exported', async () => {
  const dir = join(GOLDENS, 'llama');
  await using whole = await openSourceNetwork(dir);
  const spec = { ...(whole.spec as DecoderSpec), layers: 1 };
  const json = await readJsonFile<Parameters<typeof tokenizerPairs>[0]>(join(dir, 'tokenizer.json'));
  const pairs = [...networkPairs(spec), ...tokenizerPairs(json, 'gpt-2', spec.vocab, spec.eosIds[0])];
  const vector = (name: string, shape: number[]) => {
    return { name, shape, type: 0, bytes: STORED.F32.encode(new Float32Array(shape.reduce((a, b) => a * b, 1))) };
  };
  const table = vector('token_embd.weight', [spec.vocab, spec.hidden]);
  const withPair = (pair: GgufPair) => ggufBytes([...pairs.filter(([key]) => key !== pair[0]), pair], [table]);
  const without = (key: string) =>
    ggufBytes(
      pairs.filter(([found]) => found !== key),
      [table],
    );
  const sound = ggufBytes(pairs, [table]);
  /** The sound file with bytes in the place of its first pair. */
  const beginning = (...bytes: readonly Uint8Array[]) =>
    Buffer.concat([sound.subarray(0, 24), ...bytes, sound.subarray(24)]);
  const key = Buffer.from([1, 0, 0, 0, 0, 0, 0, 0, 0x6b]); // "k"
  const array = Buffer.from([9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // the type of its elements, and that there is one
  const ARRAY_TYPE = array.subarray(0, 4);
  const changed = (at: number, byte: number) => Buffer.from(sound).fill(byte, at, at + 1);

  test('the sound file from which the others are made is read', async () => {
    await using network = await openSourceNetwork(await write('sound.gguf', sound));
    expect(network.spec).toEqual(spec);
  });

  test.each<[string, Uint8Array, RegExp]>([
    ['an empty file', new Uint8Array(0), /cut short/],
    ['a file of another kind', changed(0, 0x50), /not a GGUF file/],
    ['another version', changed(4, 9), /GGUF version 9 is not supported/],
    ['a count beyond all numbers', Buffer.from(sound).fill(0xff, 8, 16), /size of .* is too large/],
    ['more pairs than the file has', Buffer.from(sound).fill(0x7f, 16, 20), /metadata|type|cut short|too large|UTF-8/],
    ['a header without its end', sound.subarray(0, 2000), /cut short/],
    ['tensors without their end', sound.subarray(0, sound.length - 64), /token_embd.*was it cut short/],
    ['a key twice', ggufBytes([...pairs, pairs[0]!], [table]), /"general.architecture" twice/],
    ['a tensor twice', ggufBytes(pairs, [table, table]), /two tensors named "token_embd.weight"/],
    ['tensors that overlap', ggufBytes(pairs, [table, { ...table, name: 'b', offset: 32 }]), /overlaps/],
    ['a tensor at an odd place', ggufBytes(pairs, [{ ...table, offset: 3 }]), /3 is not a multiple of 32/],
    ['a type that is not known', ggufBytes(pairs, [{ ...table, type: 17 }]), /type 17, which is not supported \(F32/],
    ['half a block', ggufBytes(pairs, [{ ...table, shape: [3, 40], type: 2 }]), /40 columns.*Q4_0's 32/],
    ['a key that is not UTF-8', beginning(key.subarray(0, 8), Buffer.from([0xff])), /text at byte 32 is not UTF-8/],
    ['a value of an unknown type', beginning(key, Buffer.from([13, 0, 0, 0])), /"k" has a value of type 13/],
    ['arrays in arrays in arrays', beginning(key, ARRAY_TYPE, array, array, array), /"k" has arrays within/],
    ['no dimensions', ggufBytes(pairs, [{ ...table, shape: [] }]), /"token_embd.weight" has 0 dimensions, and 1 to 4/],
    ['five dimensions', ggufBytes(pairs, [{ ...table, shape: [1, 1, 1, 1, 1] }]), /has 5 dimensions, and 1 to 4/],
    ['a tensor beyond all numbers', ggufBytes(pairs, [{ ...table, shape: [2 ** 40, 2 ** 40] }]), /is too large/],
    ['layers beyond all machines', withPair(['llama.block_count', 'u32', 4_000_000_000]), /4000000000/],
    ['more tokens than rows', ggufBytes(pairs, [{ ...table, shape: [8, spec.hidden] }]), /embedding table 8 rows/],
    ['no tokens', withPair(['tokenizer.ggml.tokens', 'strings', []]), /tokens is not a list of texts/],
    ['no merges', without('tokenizer.ggml.merges'), /merges is not a list of texts/],
    ['an odd alignment', withPair(['general.alignment', 'u32', 33]), /general.alignment 33/],
    ['another architecture', withPair(['general.architecture', 'string', 'mamba']), /"mamba" is not supported/],
    ['no layers', without('llama.block_count'), /llama.block_count is missing/],
    ['a head of odd size', withPair(['llama.attention.key_length', 'u32', 12]), /llama.attention.value_length/],
    ['partial rotation', withPair(['llama.rope.dimension_count', 'u32', 4]), /rope.dimension_count 4/],
    ['scaled rotation', withPair(['llama.rope.scaling.type', 'string', 'yarn']), /rope.scaling.type yarn/],
    ['positions that are scaled', withPair(['llama.rope.scale_linear', 'f32', 2]), /rope.scale_linear 2 is not/],
    ['a window of attention', withPair(['llama.attention.sliding_window', 'u32', 512]), /sliding_window 512 is not/],
    ['another scale of attention', withPair(['llama.attention.scale', 'f32', 0.5]), /attention.scale 0.5 is not/],
    ['no heads', withPair(['llama.attention.head_count', 'u32', 0]), /head/],
    ['an epsilon that is no number', withPair(['llama.attention.layer_norm_rms_epsilon', 'f32', NaN]), /eps/],
    ['experts', withPair(['llama.expert_count', 'u32', 8]), /expert_count 8/],
    ['a count beyond safe numbers', withPair(['llama.block_count', 'u64', 2 ** 60]), /block_count is not a number/],
    ['an alignment in words', withPair(['general.alignment', 'string', '32']), /general.alignment 32 is not/],
    ['no architecture', without('general.architecture'), /general.architecture null is not supported/],
    ['no end of a context', without('llama.context_length'), /llama.context_length is missing/],
    ['text for a number', withPair(['llama.block_count', 'string', 'two']), /llama.block_count is not a number/],
    ['a tensor that no graph has', ggufBytes(pairs, [table, vector('rope_freqs.weight', [4])]), /"rope_freqs.weight"/],
    ['a missing table', ggufBytes(pairs, []), /"token_embd.weight" is missing/],
    ['a tokenizer of another kind', withPair(['tokenizer.ggml.model', 'string', 'llama']), /"llama" is not supported/],
    ['no kind of tokenizer', without('tokenizer.ggml.model'), /tokenizer.ggml.model is missing/],
    ['tokens that are numbers', withPair(['tokenizer.ggml.tokens', 'i32s', [1, 2]]), /tokens is not a list of texts/],
    ['merges that are numbers', withPair(['tokenizer.ggml.merges', 'i32s', [1]]), /merges is not a list of texts/],
    ['too few types', withPair(['tokenizer.ggml.token_type', 'i32s', [1]]), /token_type does not name a type for each/],
    ['a merge of one', withPair(['tokenizer.ggml.merges', 'strings', ['q']]), /"q", which does not make/],
    ['an end in words', withPair(['tokenizer.ggml.eot_token_id', 'string', 'end']), /eot_token_id end is not one/],
    ['half an end', withPair(['tokenizer.ggml.eos_token_id', 'f32', 1.5]), /eos_token_id 1.5 is not one/],
    ['words of another kind', withPair(['tokenizer.ggml.pre', 'string', 'dbrx']), /"dbrx" is not supported \(gpt-2/],
    ['words of no kind', without('tokenizer.ggml.pre'), /tokenizer.ggml.pre null/],
    ['a token twice', withPair(['tokenizer.ggml.tokens', 'strings', Array(spec.vocab).fill('a')]), /has "a" twice/],
    ['no types of tokens', without('tokenizer.ggml.token_type'), /token_type does not name/],
    ['a merge to no token', withPair(['tokenizer.ggml.merges', 'strings', ['q q']]), /"q q", which does not make/],
    ['an end that is no token', withPair(['tokenizer.ggml.eos_token_id', 'u32', 99_999]), /eos_token_id 99999/],
  ])('%s is refused', async (_, bytes, message) => {
    await expect(openSourceNetwork(await write('refused.gguf', bytes))).rejects.toThrow(
      expect.objectContaining({ code: 'checkpoint_invalid', message: expect.stringMatching(message) }),
    );
  });

  test('counts may have 64 bits', async () => {
    await using network = await openSourceNetwork(await write('wide.gguf', withPair(['llama.block_count', 'u64', 1])));
    expect(network.spec).toEqual(spec);
    await expect(network.weights.read('model.layers.0.mlp.up_proj.weight')).rejects.toThrow(/"blk.0.ffn_up.weight" is/);
    await expect(network.weights.read('model.layers.7.mlp.up_proj.weight')).rejects.toThrow(/layers.7.* is missing/);
  });

  test('a file that is not there, and a header that does not end, are refused', async () => {
    const refused = (message: RegExp) =>
      expect.objectContaining({ code: 'checkpoint_invalid', message: expect.stringMatching(message) });
    await expect(openSourceNetwork(join(folder, 'none.gguf'))).rejects.toThrow(refused(/none.gguf/));
    // A key of 150 MiB, in a file of 200 MiB that takes no room on the disk.
    const path = await write(
      'endless.gguf',
      Buffer.concat([sound.subarray(0, 24), Buffer.from([0, 0, 0x60, 9, 0, 0, 0, 0])]),
    );
    await truncate(path, 200 * 2 ** 20);
    await expect(openSourceNetwork(path)).rejects.toThrow(refused(/header takes more than 134217728 bytes/));
  });

  test('an array that claims a billion values is refused before any is read', async () => {
    const [head, rest] = [sound.subarray(0, 24), sound.subarray(24)];
    const array = Buffer.from([4, 0, 0, 0, 0, 0, 0, 0, ...Buffer.from('many'), 9, 0, 0, 0, 0, 0, 0, 0]);
    const count = Buffer.from(BigUint64Array.of(1_000_000_000n).buffer);
    await expect(
      openSourceNetwork(await write('array.gguf', Buffer.concat([head, array, count, rest]))),
    ).rejects.toThrow(/"many" have 1000000000 values: too many/);
  });
});

describe('a header', () => {
  const words = fc.string({ unit: 'grapheme', maxLength: 12 });
  const uint32 = fc.nat({ max: 2 ** 31 });
  const pair: fc.Arbitrary<GgufPair> = fc.oneof(
    fc.tuple(words, fc.constant('u32' as const), uint32),
    fc.tuple(words, fc.constant('f32' as const), fc.float({ noNaN: true })),
    fc.tuple(words, fc.constant('string' as const), words),
    fc.tuple(words, fc.constant('bool' as const), fc.boolean()),
    fc.tuple(words, fc.constant('strings' as const), fc.array(words, { maxLength: 4 })),
    fc.tuple(words, fc.constant('i32s' as const), fc.array(fc.integer(), { maxLength: 4 })),
  );
  const tensor: fc.Arbitrary<GgufTensorBytes> = fc
    .record({ name: words, rows: fc.integer({ min: 1, max: 3 }), blocks: fc.integer({ min: 1, max: 2 }) })
    .map(({ name, rows, blocks }) => {
      const shape = [rows, 32 * blocks];
      return { name, shape, type: STORED.Q8_0.type, bytes: STORED.Q8_0.encode(new Float32Array(rows * shape[1]!)) };
    });
  const file = fc.record({
    pairs: fc.uniqueArray(
      pair.filter(([key]) => key !== 'general.alignment'),
      { selector: ([key]) => key, maxLength: 5 },
    ),
    tensors: fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 4 }),
  });
  /** @returns the header, undefined where it goes on, or the code of a refusal */
  const parsed = (bytes: Uint8Array, fileBytes: number) => {
    try {
      return parseGgufHeader('a.gguf', bytes, fileBytes);
    } catch (error) {
      return (error as { readonly code?: string }).code ?? String(error);
    }
  };

  test('a header is read as it was written, whatever keys, texts and tensors it has', () => {
    fc.assert(
      fc.property(file, ({ pairs, tensors }) => {
        const bytes = ggufBytes(pairs, tensors);
        const header = parseGgufHeader('a.gguf', bytes, bytes.length)!;
        expect([...header.metadata]).toEqual(pairs.map(([key, , value]) => [key, value]));
        expect([...header.tensors.keys()].sort()).toEqual(tensors.map(({ name }) => name).sort());
        for (const { name, shape, bytes: stored } of tensors) {
          const found = header.tensors.get(name)!;
          expect(found.shape).toEqual(shape);
          expect(bytes.subarray(found.begin, found.end)).toEqual(Buffer.from(stored));
        }
      }),
      { numRuns: 200 },
    );
  });

  test('of a part of a header more is asked for, and at the end of the file it is refused', () => {
    fc.assert(
      fc.property(file, fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), ({ pairs, tensors }, share) => {
        const bytes = ggufBytes(pairs, tensors);
        const part = bytes.subarray(0, Math.floor(share * (bytes.length - 32)));
        const more = parsed(part, bytes.length);
        // Where the part has the whole header, it is that of the whole.
        expect(more === undefined || typeof more === 'object').toBe(true);
        if (more !== undefined) expect(more).toEqual(parsed(bytes, bytes.length));
        if (more === undefined || tensors.length > 0) expect(parsed(part, part.length)).toBe('checkpoint_invalid');
      }),
      { numRuns: 200 },
    );
  });

  test('a header with a changed byte is refused with a code, or has tensors within the file that do not overlap', () => {
    fc.assert(
      fc.property(file, fc.nat(), fc.nat({ max: 255 }), ({ pairs, tensors }, at, byte) => {
        const bytes = ggufBytes(pairs, tensors);
        bytes[at % bytes.length] = byte;
        const found = parsed(bytes, bytes.length);
        if (found === 'checkpoint_invalid') return;
        expect(found).toBeTypeOf('object');
        if (typeof found !== 'object') return;
        let last = 0;
        for (const { begin, end } of found.tensors.values()) {
          expect(begin).toBeGreaterThanOrEqual(last);
          expect(end).toBeLessThanOrEqual(bytes.length);
          last = end;
        }
      }),
      { numRuns: 500 },
    );
  });
});
