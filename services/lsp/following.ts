/** Which repositories are kept in the index: those of which a document was opened. */
import { homedir } from 'node:os';
import { dirname } from 'node:path';
import { type ErrorCode, ServingError } from '../lib/process/errors.ts';
import type { CompletionSystem, IndexRun } from './query.ts';
import type { Repository } from './repository.ts';
import type { StatusLine } from './status.ts';

/** Failures that are over as soon as the gateway answers anything. */
const OVER_WITH_AN_ANSWER: readonly ErrorCode[] = ['address_unusable', 'worker_lost'];

export interface FollowingParts {
  readonly follow: CompletionSystem['follow'];
  readonly status: StatusLine;
  /** Begins to show the progress of a run. */
  readonly progress: (title: string) => IndexRun;
  readonly signal: AbortSignal;
}

export class Following {
  readonly #parts: FollowingParts;
  /** By root: true while it is followed, its failure after that. */
  readonly #state = new Map<string, true | ServingError>();
  readonly #running = new Set<string>();

  constructor(parts: FollowingParts) {
    this.#parts = parts;
  }

  /** Whether the repository is being indexed as a whole. */
  isIndexing({ root }: Repository): boolean {
    return this.#running.has(root);
  }

  /** A document of the repository was opened. */
  opened(repository: Repository): void {
    if (this.#parts.follow === undefined || this.#state.get(repository.root) === true) return;
    if (isTooWide(repository.root)) {
      const message =
        `${repository.root} is not indexed by itself, because it holds more than a project. ` +
        'Index what you want of it: llavacode index --path DIR';
      this.#parts.status.set({ state: 'nothing', code: 'too_wide', message, repository: repository.name });
      return;
    }
    this.#begin(repository, this.#parts.follow);
  }

  /** The gateway has answered for this repository. */
  answered(repository: Repository): void {
    const { follow } = this.#parts;
    const state = this.#state.get(repository.root);
    if (follow === undefined || !(state instanceof ServingError)) return;
    if (OVER_WITH_AN_ANSWER.includes(state.code)) this.#begin(repository, follow);
  }

  #begin(repository: Repository, follow: NonNullable<CompletionSystem['follow']>): void {
    const { status, signal } = this.#parts;
    const { root, name } = repository;
    this.#state.set(root, true);
    const failed = (error: unknown) => {
      if (signal.aborted) return;
      const failure = ServingError.from(error);
      this.#running.delete(root);
      this.#state.set(root, failure);
      status.failed(failure, name);
    };
    const onFailure = (error: ServingError) => status.failed(error, name);
    follow(repository, { signal, onRun: () => this.#run(repository), onFailure }).catch(failed);
  }

  #run({ root, name }: Repository): IndexRun {
    const { status, progress } = this.#parts;
    this.#running.add(root);
    status.set({ state: 'indexing', code: 'indexing', message: `${name} is being indexed`, repository: name });
    const shown = progress(`Indexing ${name}`);
    return {
      progress: (message, percentage) => shown.progress(message, percentage),
      end: (outcome) => {
        this.#running.delete(root);
        shown.end(outcome);
        if (outcome instanceof ServingError) return; // whether it is tried again is told by whoever knows
        status.set({ state: 'ready', code: 'indexed', message: outcome, repository: name });
      },
    };
  }
}

/** A checkout of one's whole home or disk, as some keep their settings in, is not a project. */
const isTooWide = (root: string) => root === homedir() || root === dirname(root);
