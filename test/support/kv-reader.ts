/** Sequences in a {@link DecodeLoop} and the tokens that they get, for the tests of the loop. */
import type { DecodeLoop, DecodeStep, Sequence } from '../../services/decode/loop.ts';
import type { Drafts } from '../../services/decode/speculation/draft-index.ts';
import type { KvSlot } from '../../services/lib/kv/pool.ts';
import { type FinishReason, GREEDY } from '../../services/lib/request/next-token.ts';
import { continuation, type FakeEngine, nextToken } from './fake-engine.ts';

/** A consumer of one sequence. */
export interface Reader {
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  readonly stopTokenIds: readonly number[];
  readonly slot: KvSlot;
  readonly sequence: Sequence;
  /** Output so far, first token included. */
  readonly tokens: number[];
  finishReason: FinishReason | undefined;
  error: unknown;
  /** Never rejects. */
  readonly ended: Promise<void>;
}

export interface Wanted {
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  readonly stopTokenIds?: readonly number[];
  readonly drafts?: Drafts;
}

/** Reserves a slot and fills it at once. To be called only while no step runs that spans it. */
export function fill(engine: FakeEngine, { prompt }: Wanted): KvSlot | undefined {
  const slot = engine.pool.reserve(prompt.length);
  if (slot) engine.write(slot.index, 0, prompt);
  return slot;
}

export function join(loop: DecodeLoop, slot: KvSlot, wanted: Wanted): Reader {
  const { prompt, maxTokens, stopTokenIds = [], drafts } = wanted;
  const firstToken = nextToken(prompt);
  const sequence = loop.join({
    slot,
    sampling: { ...GREEDY, stopTokenIds },
    positions: prompt.length,
    firstToken,
    maxTokens,
    ...(drafts && { drafts }),
  });
  const reader: Reader = {
    prompt,
    maxTokens,
    stopTokenIds,
    slot,
    sequence,
    tokens: [firstToken],
    finishReason: undefined,
    error: undefined,
    ended: read(),
  };
  async function read(): Promise<void> {
    try {
      for await (const step of sequence.steps as AsyncIterable<DecodeStep>) {
        reader.tokens.push(...step.tokens.map(({ id }) => id));
        reader.finishReason = step.finishReason;
      }
    } catch (error) {
      reader.error = error;
    }
  }
  return reader;
}

/** The output that a reader must have when its sequence has ended by itself. */
export const alone = (reader: Reader) => continuation(reader.prompt, reader.maxTokens, reader.stopTokenIds);
