/**
 * What fits in the memory of a card: the arithmetic with which a worker checks --device-memory (lib/engine/memory.ts),
 * solved for the number of slots. Sizes of weights are those of the graphs as they are written, so that nothing has to
 * be downloaded or made.
 */
import { engineMemory } from '../../services/lib/engine/memory.ts';
import { PRECISIONS, type Precision } from '../../services/lib/model/bundle/choices.ts';
import { weightFormats } from '../../services/lib/model/bundle/weight-formats.ts';
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import {
  decoderTensorShape,
  publishedSpec,
  SHAPES,
  type ShapeName,
} from '../../services/lib/model/checkpoint/synth.ts';
import { buildDecoder } from '../../services/lib/model/graph/decoder.ts';
import { weightBytes } from '../../services/lib/model/graph/onnx.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { figure, table } from '../report/markdown.ts';

/** Memory of cards that are common, in GiB. */
const CARDS = [8, 16, 24, 48, 80, 141] as const;
/** Share of a card's memory that a worker may take: the rest is the driver's, and the runtime's own. */
const USABLE = 0.9;
/** Tokens of a slot. */
const CAPACITY = 4096;

export interface Fit {
  /** Bytes of the weights and of one slot's KV caches. */
  readonly weights: number;
  readonly slot: number;
  /** Slots of one worker that computes prompts and steps, or 0 where the weights alone do not fit. */
  slotsOn(cardBytes: number): number;
}

/** @throws ServingError invalid_request for a name that is not a published shape's, or for an unknown precision. */
export function fitOf(model: string, precision: string): Fit {
  const name = Object.keys(SHAPES).find((shape): shape is ShapeName => shape === model);
  const known = PRECISIONS.find((each): each is Precision => each === precision);
  if (name === undefined || known === undefined) {
    const [what, choices] = name === undefined ? [model, Object.keys(SHAPES)] : [precision, PRECISIONS];
    throw new ServingError('invalid_request', `--fits knows no ${what}: use ${choices.join(', ')}`);
  }
  return fitOfNetwork(name, publishedSpec(name), known);
}

/** The same for a network of any shape. @param origin its name, for error messages. */
export function fitOfNetwork(origin: string, spec: DecoderSpec, precision: Precision): Fit {
  const { layers, vocabulary, floats } = weightFormats(precision, spec.layers);
  const source = {
    origin,
    shapeOf: (tensor: string) => decoderTensorShape(spec, tensor),
    read: () => Promise.reject(new Error('sizes need no values')),
  };
  const graph = buildDecoder(spec, source, { layers, vocabulary, floats, maxPositions: CAPACITY });
  const files = [{ path: 'llm/model.bin', bytes: weightBytes(graph), sha256: '' }];
  const manifest = { precision, llm: { spec, maxPositions: CAPACITY, files } };
  const needOf = (slots: number) => engineMemory(manifest, 'llm', slots, CAPACITY);
  const [none, one] = [needOf(0), needOf(1)];
  const slot = one.kv + one.logits;
  // Beside the slots a device that computes prompts and steps has a staging slot.
  const fixed = none.weights + none.scratch + slot;
  return {
    weights: none.weights,
    slot: one.kv,
    slotsOn: (cardBytes) => Math.max(0, Math.floor((cardBytes * USABLE - fixed) / slot)),
  };
}

/** A table in Markdown: for each model and precision the weights, a slot, and how many slots fit on each card. */
export function fitsTable(models: readonly string[], precisions: readonly string[]): string {
  const rows = models.flatMap((model) =>
    precisions.map((precision) => {
      const { weights, slot, slotsOn } = fitOf(model, precision);
      const slots = CARDS.map((gib) => slotsOn(gib * 2 ** 30));
      const sizes = [figure(weights / 2 ** 30), figure(slot / 2 ** 20)];
      return [model, precision, ...sizes, ...slots.map((count) => (count === 0 ? '—' : String(count)))];
    }),
  );
  const cards = CARDS.map((gib) => `${gib} GiB`);
  const head = ['model', 'precision', 'weights, GiB', `slot of ${CAPACITY}, MiB`, ...cards];
  return table(head, rows, ['left', 'left']);
}
