/**
 * How long the passes of a run may be, and whether there is room for them: positions of the language model, and memory.
 * The teacher, and what completes the targets of distillation, read the chunks as text beside the prompt.
 */
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { assertFitsContext } from '../data/samples.ts';
import { formatsOf } from '../step/frozen.ts';
import type { ModelPlace } from '../step/pass.ts';
import { completionSlots, ROLLOUT_SLOTS, withinMemory } from './memory.ts';
import { pretrainRows } from './pretraining.ts';
import { assertTrains, type TrainOptions } from './settings.ts';

export const distills = ({ distill = 0 }: TrainOptions['weights']): boolean => distill !== 0;
const rollsOut = ({ weights, validation }: TrainOptions) => weights.reinforce !== 0 || validation !== undefined;

/** The most rows of passes; 0 of those that the run does not make. */
function passRows(options: TrainOptions) {
  const { weights, validation, promptTokens, targetTokens, rolloutTokens, textTokens } = options;
  const scored = targetTokens + rolloutTokens * (Number(rollsOut(options)) + Number(distills(weights)));
  const withText = promptTokens + textTokens;
  return {
    /** Rows with losses of a pass that is trained through. */
    scored,
    /** Of a pass that is trained through. */
    trained: promptTokens + scored,
    /** Of the teacher's. */
    taught: weights.kl === 0 ? 0 : withText + targetTokens,
    /** Of the judge's, and of a rollout. */
    judged: validation === undefined ? 0 : promptTokens + targetTokens,
    rolledOut: rollsOut(options) ? promptTokens + rolloutTokens : 0,
    /** Of a completion with the chunks as text. */
    completed: distills(weights) ? withText + rolloutTokens : 0,
  };
}

/**
 * What of the options follows from the memory. Rollouts of other numbers together may differ in their last bits.
 * @throws ServingError config_invalid where the memory is too small.
 */
export function fitted(
  options: TrainOptions,
  spec: DecoderSpec,
): Pick<TrainOptions, 'recompute' | 'rolloutSlots' | 'completionSlots'> {
  const { validation, weights, frozen, recompute, memory, workers, pretrain: pretraining, encoderChoices } = options;
  const { scored, trained, taught, judged, rolledOut, completed } = passRows(options);
  const need = {
    frozen,
    recompute,
    rows: Math.max(trained, pretraining === undefined ? 0 : pretrainRows(pretraining, encoderChoices.softPerChunk)),
    scored: Math.max(scored, pretraining?.tokens ?? 0),
    forwardGraphs: Number(weights.kl !== 0 || validation !== undefined) + Number(rollsOut(options)),
    forwardRows: Math.max(taught, judged, rolledOut),
    teaches: weights.kl !== 0,
    workers,
  };
  const { recompute: again, slots } = withinMemory(spec, need, memory);
  const found = { recompute: again, rolloutSlots: slots };
  if (completed === 0) return found;
  // Without rollouts of its own the run has 0 slots. The graph that trains is not open yet, so there is room.
  const most = slots || ROLLOUT_SLOTS;
  const together = completionSlots(spec, { frozen, rows: completed, most }, memory);
  return together === most ? found : { ...found, completionSlots: together };
}

/**
 * Whether the run's passes have enough positions.
 * @throws ServingError config_invalid where no loss has a weight, where workers would share threads, or where the model
 *   was not made for so many positions.
 */
export function assertRoom(options: TrainOptions, spec: DecoderSpec): void {
  assertTrains(options);
  const { trained, taught, judged, rolledOut, completed } = passRows(options);
  assertFitsContext(options, spec, Math.max(trained, taught, judged, rolledOut, completed));
}

/** The language model of the run. @throws ServingError as {@link assertRoom}. */
export function modelPlace(
  options: TrainOptions,
  network: Pick<ModelPlace, 'spec' | 'weights'>,
  where: Pick<ModelPlace, 'folder' | 'shared' | 'device'>,
): ModelPlace {
  assertRoom(options, network.spec);
  const { frozen, recompute, threads, workers, textTokens, weights } = options;
  // Graphs have as many positions as runs of earlier versions had, since their digest is part of a run.
  const maxPositions = passRows(options).trained + (weights.kl === 0 ? 0 : textTokens);
  return { ...network, ...where, threads, workers, ...formatsOf(frozen), recompute, maxPositions };
}
