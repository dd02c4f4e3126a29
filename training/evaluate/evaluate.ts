/**
 * An evaluation: the rows of a data set, each judged without context, with its chunks as text, or with them as soft
 * tokens of a projector. The same code stands in the prompts of all three.
 */
import type { OrtSession } from '../../services/lib/engine/ort.ts';
import { openSourceNetwork, type SourceNetwork } from '../../services/lib/model/checkpoint/source-network.ts';
import { type DecoderSpec, isDecoder } from '../../services/lib/model/checkpoint/spec.ts';
import {
  assertProjectorFits,
  buildProjector,
  openProjector,
  readProjectorSpec,
} from '../../services/lib/model/graph/projector.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { makeFolder } from '../../services/lib/process/os-errors.ts';
import { loadTokenizer } from '../../services/lib/text/tokenizer.ts';
import type { Arm, FROZEN_FORMATS } from '../choices.ts';
import { Embeddings, type EncoderChoices } from '../data/embeddings.ts';
import { type DataRow, type DataSet, readDataSet } from '../data/rows.ts';
import { assertFitsContext, encodeChunks, SampleMaker } from '../data/samples.ts';
import { meanCosine } from '../metrics/cosines.ts';
import { formatsOf } from '../step/frozen.ts';
import { openGraph, type SessionPlace } from '../step/graph-session.ts';
import { float32 } from '../step/tensors.ts';
import { Judge, type Judgement, QUESTIONS, type Question } from './judge.ts';
import { type EvaluationInputs, KeptJudgements } from './kept.ts';

export interface EvaluationOptions {
  /** Hugging Face folder of the language model. */
  readonly llm: string;
  readonly data: string;
  readonly arm: Arm;
  /** For the arm `compressed` alone. */
  readonly compressor?: Compressor;
  /** The file of its judgements; see KeptJudgements. */
  readonly to: string;
  /** Folder for graphs while it runs. */
  readonly work: string;
  readonly chunks: number;
  /** Soft tokens of a chunk; 1 where not given. Those of the compressor, so that arms have the same code. */
  readonly softPerChunk?: number | undefined;
  readonly promptTokens: number;
  readonly targetTokens: number;
  readonly textTokens: number;
  /** The most tokens of a completion. */
  readonly rolloutTokens: number;
  readonly frozen: (typeof FROZEN_FORMATS)[number];
  readonly threads: number;
}

interface Compressor {
  readonly projector: string;
  /** Hugging Face folder of the encoder; the language model encodes where not given. */
  readonly encoder: string | undefined;
  readonly encoderChoices: EncoderChoices;
  /** Folder of the embeddings of all encoders. */
  readonly embeddings: string;
}

export interface Evaluation {
  readonly inputs: EvaluationInputs;
  /** In the order of the data set. */
  readonly judgements: readonly Judgement[];
}

/**
 * Evaluates one arm, or goes on with an evaluation that was stopped.
 * @param onProgress told of what is done
 * @throws ServingError config_invalid, checkpoint_invalid, projector_invalid, sample_invalid, path_unusable,
 *   runtime_failed; the signal's reason.
 */
export async function evaluate(
  options: EvaluationOptions,
  onProgress: (text: string) => void,
  signal: AbortSignal,
): Promise<Evaluation> {
  await makeFolder(options.work);
  await using llm = await openSourceNetwork(options.llm);
  const { spec } = llm;
  if (!isDecoder(spec)) {
    throw new ServingError('config_invalid', `--llm ${options.llm}: ${spec.architecture} is not a decoder: name one`);
  }
  const { chunks, softPerChunk, promptTokens, targetTokens, textTokens, rolloutTokens, threads } = options;
  const tokenizer = await loadTokenizer(llm.tokenizerDir);
  const samples = new SampleMaker(tokenizer, spec.eosIds, options);
  const data = samples.read(await readDataSet(options.data, 'valid'));
  const maxPositions = promptTokens + textTokens + Math.max(targetTokens, rolloutTokens);
  assertRoomToJudge(options, spec);
  const formats = formatsOf(options.frozen);
  const place = { folder: options.work, threads, ...formats, spec, weights: llm.weights, maxPositions };
  const reading = { tokenizer, stopIds: new Set(samples.format.stopIds) };
  onProgress('reading the language model');
  const judge = await Judge.load(place, rolloutTokens, reading, signal);
  try {
    const soft = options.arm === 'compressed' ? await Soft.open(options, llm, spec.hidden, place, signal) : undefined;
    try {
      await soft?.encode(data, samples, onProgress, signal);
      const lengths = { chunks, promptTokens, targetTokens, textTokens, rolloutTokens };
      const settings = softPerChunk === undefined ? lengths : { ...lengths, softPerChunk };
      const inputs = { arm: options.arm, model: judge.digest, data: data.digest, ...soft?.digests, settings };
      const kept = await KeptJudgements.open(options.to, inputs);
      // A process that is killed loses what was asked at once.
      while (kept.made.length < data.rows.length) {
        const done = kept.made.length;
        onProgress(`judging ${done + 1} of ${data.rows.length}`);
        const asked: Asked[] = [];
        for (let i = done; i < Math.min(done + QUESTIONS, data.rows.length); i++) {
          asked.push(
            soft
              ? await softQuestion(data.rows, i, samples, soft, signal)
              : { question: questionOf(options.arm, data.rows[i]!, samples) },
          );
        }
        const questions = asked.map(({ question }) => question);
        const judgements = await judge.judge(questions, signal);
        await kept.add(judgements.map((judgement, i) => ({ ...judgement, ...asked[i]!.cosines })));
      }
      return { inputs, judgements: kept.made };
    } finally {
      await soft?.dispose();
    }
  } finally {
    await judge.dispose();
  }
}

/** @throws ServingError config_invalid where the language model was not made for so many positions. */
export function assertRoomToJudge(
  options: Pick<EvaluationOptions, 'llm' | 'arm' | 'promptTokens' | 'targetTokens' | 'textTokens' | 'rolloutTokens'>,
  spec: DecoderSpec,
): void {
  const { arm, promptTokens, targetTokens, textTokens, rolloutTokens } = options;
  const rows = promptTokens + Math.max(targetTokens, rolloutTokens);
  assertFitsContext(options, spec, arm === 'text' ? rows + textTokens : rows);
}

const NO_SOFT = new Float32Array(0);

const questionOf = (arm: Arm, row: DataRow, samples: SampleMaker): Question => ({
  sample: arm === 'text' ? samples.withText(row) : samples.without(row),
  soft: NO_SOFT,
  target: row.target,
});

/** A question, and how alike its soft tokens are, where it has any. */
interface Asked {
  readonly question: Question;
  readonly cosines?: Pick<Judgement, 'cosine' | 'cosineOfEmbeddings'> | undefined;
}

/**
 * A sample with the soft tokens of its chunks, and as a control with those of the sample that is half of the data set
 * away: mostly of another repository, since a data set has one after the other.
 */
async function softQuestion(
  rows: readonly DataRow[],
  index: number,
  samples: SampleMaker,
  soft: Soft,
  signal: AbortSignal,
): Promise<Asked> {
  const row = rows[index]!;
  const { name, left, right, target } = row;
  const { cosines, ...own } = await soft.sampleOf(row, samples, signal);
  const other = rows[(index + Math.ceil(rows.length / 2)) % rows.length]!;
  if (other === row) return { question: { ...own, target }, cosines };
  const control = await soft.sampleOf({ name, left, right, target, chunks: other.chunks }, samples, signal);
  return { question: { ...own, target, control: { sample: control.sample, soft: control.soft } }, cosines };
}

/** The encoder's embeddings and the projector that makes soft tokens of them. */
class Soft {
  readonly digests: { readonly projector: string; readonly encoder: string };
  readonly #embeddings: Embeddings;
  readonly #projector: OrtSession;

  private constructor(embeddings: Embeddings, projector: OrtSession, digest: string) {
    this.#embeddings = embeddings;
    this.#projector = projector;
    this.digests = { projector: digest, encoder: embeddings.digest };
  }

  static async open(
    { compressor, data }: EvaluationOptions,
    llm: SourceNetwork,
    hidden: number,
    place: SessionPlace,
    signal: AbortSignal,
  ): Promise<Soft> {
    if (compressor === undefined) {
      throw new ServingError('config_invalid', `${data}: soft tokens need a projector: name one`);
    }
    const { encoder, encoderChoices, embeddings: folder } = compressor;
    await using weights = await openProjector(compressor.projector);
    await using other = encoder === undefined ? undefined : await openSourceNetwork(encoder);
    const embeddings = await Embeddings.open(folder, other ?? llm, encoderChoices, place, signal);
    try {
      assertProjectorFits(weights, readProjectorSpec(weights), embeddings.dim, hidden);
      const { session, digest } = await openGraph(buildProjector(weights), place, signal);
      return new Soft(embeddings, session, digest);
    } catch (error) {
      await embeddings.dispose();
      throw error;
    }
  }

  async encode(
    { rows }: DataSet,
    samples: SampleMaker,
    onProgress: (text: string) => void,
    signal: AbortSignal,
  ): Promise<void> {
    await encodeChunks(rows, samples, this.#embeddings, onProgress, signal);
  }

  /** A sample with its soft tokens, and how alike they are. */
  async sampleOf(row: DataRow, samples: SampleMaker, signal: AbortSignal) {
    const { embeddings, ...sample } = await samples.embedded(row, this.#embeddings);
    const count = sample.softPositions.length;
    const shape = [count, embeddings.length / count];
    const out = await this.#projector.run({ embeddings: float32(shape, embeddings) }, ['soft_tokens'], signal);
    const soft = out['soft_tokens']!.data as Float32Array;
    const cosineOf = (vectors: Float32Array) => (count > 1 ? meanCosine(vectors, count) : null);
    return { sample, soft, cosines: { cosine: cosineOf(soft), cosineOfEmbeddings: cosineOf(embeddings) } };
  }

  async dispose(): Promise<void> {
    this.#projector.dispose();
    await this.#embeddings.dispose();
  }
}
