/** The steps of a run from where it stands to its end, with validations, checkpoints and the projectors they give. */
import { join, resolve } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Progress } from '../../services/lib/process/progress.ts';
import type { Embeddings } from '../data/embeddings.ts';
import { type PicturedVectors, runPage } from '../report/page.ts';
import { type AdamState, rateAt } from '../step/optimizer.ts';
import type { Tensors } from '../step/tensors.ts';
import { judged, type Standing } from './best.ts';
import { checkpointParameters, saveCheckpoint } from './checkpoints.ts';
import { type Cosines, collapseAlarm, cosinesSchema } from './collapse.ts';
import { writeWhole } from './files.ts';
import { RunLog } from './log.ts';
import { Pace } from './pace.ts';
import { writeProjector } from './projector-folder.ts';
import type { TrainOptions } from './settings.ts';
import { bar, lossWords } from './step-words.ts';
import type { Validation } from './validation.ts';

export interface TrainReport {
  /** Steps that were made. */
  readonly steps: number;
  /** Whether the run ended before its last step, because validations did not become better. */
  readonly stoppedEarly: boolean;
  /** Folder of the best projector; without validations of the last one. */
  readonly projector: string;
  /** Steps before that one. */
  readonly bestStep: number;
  /** The figures of that one. */
  readonly validation: Validation | undefined;
  /** How alike its soft tokens are, where it was looked at. */
  readonly cosines: Cosines | undefined;
}

/** What is found of the projector between two steps. */
interface Looked {
  /** Undefined where the run has no samples to validate on. */
  readonly validation?: Validation;
  readonly cosines: Cosines;
  readonly vectors: PicturedVectors;
}

/** The figures of a step: its loss, the tokens that it took, and others for the log. */
export type StepFigures = { readonly loss: number; readonly tokens: number } & Readonly<Record<string, number>>;

/** What makes the steps of a run, of one sort of samples. */
interface Stepper<S> {
  readonly optimizerState: AdamState;
  /** @param onPass told how many of the samples went through the language model */
  step(
    samples: readonly S[],
    learningRate: number,
    signal: AbortSignal,
    onPass: (done: number) => void,
  ): Promise<StepFigures>;
}

interface RunParts<S> {
  readonly options: TrainOptions;
  /** Digest of the settings; checkpoints carry it. */
  readonly identity: string;
  /** Names and shapes of the parameters. */
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  readonly parameters: Tensors;
  readonly trainer: Stepper<S>;
  /** That of the checkpoint that the run goes on from. */
  readonly standing: Standing;
  /** Whether the validation after that checkpoint's last step is still to be made. */
  readonly due?: boolean | undefined;
  readonly encoderSettings: Embeddings['settings'];
  /** The samples of a step, counted from 0. */
  readonly batch: (step: number) => Promise<readonly S[]>;
  /** Looks at the projector as it is. Undefined for a stage before a run, which is looked at by its losses alone. */
  readonly look: (() => Promise<Looked>) | undefined;
  readonly progress: Progress;
}

export class Run<S> {
  readonly #parts: RunParts<S>;
  readonly #pace = new Pace();
  #standing: Standing;
  /** The latest look at the projector. */
  #seen: (Looked & { readonly step: number; readonly alarm: string | undefined }) | undefined;
  #log: RunLog | undefined;
  /** What the progress said of the latest step. */
  #told = '';
  /** Steps before the newest checkpoint; 0 where there is none. */
  #saved: number;

  constructor(parts: RunParts<S>) {
    this.#parts = parts;
    this.#standing = parts.standing;
    this.#saved = this.#steps;
  }

  get #steps(): number {
    return this.#parts.trainer.optimizerState.steps;
  }

  get #checkpoints(): string {
    return join(this.#parts.options.to, 'checkpoints');
  }

  get #stale(): boolean {
    const { patience } = this.#parts.options;
    return patience > 0 && this.#standing.stale >= patience;
  }

  /**
   * Makes the steps that are left. Where the signal is aborted, a checkpoint of the steps so far is saved before this
   * throws.
   * @throws ServingError sample_invalid, training_diverged, path_unusable, runtime_failed; the signal's reason.
   */
  async all(signal: AbortSignal): Promise<TrainReport> {
    const { to, steps, until = steps } = this.#parts.options;
    const end = Math.min(until, steps);
    try {
      await this.#go(end, signal);
    } catch (error) {
      if (signal.aborted) await this.#keep(end);
      throw error;
    }
    const { best } = this.#standing;
    const looked = this.#log?.records.findLast((figures) => cosinesSchema.safeParse(figures).success);
    return {
      steps: this.#steps,
      stoppedEarly: this.#steps < end,
      projector: join(to, 'projector'),
      bestStep: best?.step ?? this.#steps,
      validation: best?.validation,
      cosines: cosinesSchema.optional().parse(best?.validation ?? looked),
    };
  }

  async #go(end: number, signal: AbortSignal): Promise<void> {
    const { options, trainer, batch, due = false } = this.#parts;
    const log = await RunLog.open(join(options.to, 'log.jsonl'), this.#steps, due);
    this.#log = log;
    if (this.#steps === 0) {
      const started = performance.now();
      await this.#looked(log);
      await this.#report(log);
      this.#pace.stopped(performance.now() - started);
    } else if (due) await this.#complete(log);
    else await this.#publish(); // a process that was killed may have saved a checkpoint and not its projector
    while (this.#steps < end && !this.#stale) {
      const step = this.#steps;
      const samples = await batch(step);
      const started = performance.now();
      const onPass = (done: number) => this.#tellPass(done, samples.length);
      const figures = await trainer.step(samples, this.#rate(step), signal, onPass).catch((error) => this.#fail(error));
      this.#pace.add(performance.now() - started, figures.tokens);
      await log.write({ step: step + 1, rate: this.#rate(step), ...figures });
      this.#tell(figures);
      if (this.#isStop(end)) await this.#complete(log);
    }
  }

  /** Whether the run validates and saves after the steps that it has made. */
  #isStop(end: number): boolean {
    return this.#steps % this.#parts.options.every === 0 || this.#steps === end;
  }

  async #complete(log: RunLog): Promise<void> {
    const started = performance.now();
    await this.#looked(log);
    await this.#save();
    this.#pace.stopped(performance.now() - started);
    await this.#report(log);
  }

  /** Saves the steps that no checkpoint has yet, of a run that was asked to stop. */
  async #keep(end: number): Promise<void> {
    const { options, progress } = this.#parts;
    if (this.#steps === this.#saved) return;
    await this.#save(this.#isStop(end));
    progress.warn(`stopped after step ${this.#steps} of ${options.steps}, which has a checkpoint`);
  }

  #rate(step: number): number {
    const { learningRate, schedule, warmup, steps } = this.#parts.options;
    return learningRate * rateAt(step, { form: schedule, warmup: Math.ceil(warmup * steps), total: steps });
  }

  #tell(figures: StepFigures): void {
    const { options, progress } = this.#parts;
    const made = this.#steps;
    const step = `step ${made} of ${options.steps} ${bar(made, options.steps)}`;
    // The stop after this step, if there is one, is still to come.
    const where = `${step}, ${this.#paceWords(made - 1)}`;
    this.#told = `${where}: ${lossWords(figures, options.weights)}${this.#found()}`;
    progress.update(this.#told);
  }

  /** A step of a large model takes many minutes: how far it is. */
  #tellPass(done: number, of: number): void {
    this.#parts.progress.update(
      `${this.#told}${this.#told && '; '}samples of step ${this.#steps + 1}: ${done} of ${of}`,
    );
  }

  /** The pace, and the time that is left; empty before the first step. @param made steps whose stops are over */
  #paceWords(made: number): string {
    const { steps, every } = this.#parts.options;
    if (!this.#pace.isKnown) return '';
    const stops = made >= steps ? 0 : Math.ceil(steps / every) - Math.floor(made / every);
    return this.#pace.words(steps - this.#steps, stops);
  }

  /** The latest validation and the best one. */
  #found(): string {
    const { best } = this.#standing;
    const { step, validation } = this.#seen ?? {};
    const latest = validation && step !== best?.step ? `; step ${step}: ${scoreWords(validation)}` : '';
    return `${latest}${best === undefined ? '' : `; best: step ${best.step}, ${scoreWords(best.validation)}`}`;
  }

  async #report(log: RunLog): Promise<void> {
    const { to, steps } = this.#parts.options;
    const pace = this.#paceWords(this.#steps);
    const page = runPage({
      folder: resolve(to),
      state: `step ${this.#steps} of ${steps}${pace && ', '}${pace}${this.#found()}`,
      ended: this.#steps === steps || this.#stale,
      alarm: this.#seen?.alarm,
      records: log.records,
      vectors: this.#seen?.vectors,
    });
    await writeWhole(join(to, 'report.html'), page);
  }

  /**
   * Looks at the projector, and remembers whether its validation is better than those before. One without a step is
   * never the best.
   */
  async #looked(log: RunLog): Promise<void> {
    const { look, progress } = this.#parts;
    if (look === undefined) return;
    const step = this.#steps;
    const found = await look().catch((error) => this.#fail(error));
    const { validation, cosines } = found;
    const alarm = collapseAlarm(cosines);
    this.#seen = { ...found, step, alarm };
    const collapsed = cosines.meanCosine === null ? null : Number(alarm !== undefined);
    await log.write({ step, ...(validation ?? cosines), collapsed });
    if (alarm !== undefined) {
      progress.warn(`step ${step}: ${alarm}`);
      progress.start('training');
    }
    if (validation && step > 0) this.#standing = judged(this.#standing, step, validation);
  }

  /** @param due whether the validation after the last step is still to be made */
  async #save(due = false): Promise<void> {
    const { trainer, parameters, shapes, identity } = this.#parts;
    for (const [name, values] of parameters) {
      const at = values.findIndex((value) => !Number.isFinite(value));
      if (at < 0) continue;
      const what = `after step ${this.#steps} the projector's tensor ${name} holds ${values[at]}`;
      this.#fail(new ServingError('training_diverged', what));
    }
    const state = { parameters, adam: trainer.optimizerState, standing: this.#standing, due, identity };
    await saveCheckpoint(this.#checkpoints, state, shapes);
    this.#saved = this.#steps;
    await this.#publish();
  }

  /** Writes the best projector and the last one where users find them. */
  async #publish(): Promise<void> {
    const { options, shapes, parameters, encoderSettings } = this.#parts;
    const best = this.#standing.best?.step;
    const found = best === undefined ? parameters : await checkpointParameters(this.#checkpoints, best, shapes);
    await writeProjector(join(options.to, 'projector'), found, shapes, encoderSettings);
    await writeProjector(join(options.to, 'projector-last'), parameters, shapes, encoderSettings);
  }

  /** Throws the error; where the run has diverged or lost a worker, with the name of the checkpoint that is good. */
  #fail(error: unknown): never {
    const ends = error instanceof ServingError && ['training_diverged', 'worker_lost'].includes(error.code);
    if (!ends) throw error;
    const good =
      this.#saved === 0 ? 'no checkpoint was saved before' : `the checkpoint after step ${this.#saved} is still good`;
    const next = error.code === 'worker_lost' ? ': the same command goes on' : '';
    throw new ServingError(error.code, `${error.message}; ${good}${next}`, { cause: error });
  }
}

/** The figures by which projectors are compared. */
export const scoreWords = ({ validEm, validEs, validCe }: Validation): string =>
  `EM ${(100 * validEm).toFixed(1)} %, ES ${(100 * validEs).toFixed(1)} %, CE ${validCe.toFixed(4)}`;
