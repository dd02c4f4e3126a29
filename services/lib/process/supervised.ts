/**
 * What a supervisor (services/supervisor.ts) and the processes that it starts say to each other over IPC. A process
 * says when it is ready. It may be started before all of its settings are known, and it may be given tasks.
 */
import { type ErrorCode, ServingError } from './errors.ts';

/** Has a service wait for settings of its supervisor before it reads its own. */
export const AWAIT_SETTINGS = '--await-settings';

/** From a process that accepts work from now on. */
export interface ReadyMessage {
  readonly ready: true;
  /** The host:port that it serves on. */
  readonly address: string;
  /** The host:port of its metrics; the gateway's is `address` itself. */
  readonly metricsAddress: string;
}

/** To a process that waits for settings: their values by their names, beside those that it was started with. */
export interface SettingsMessage {
  readonly settings: Readonly<Record<string, string>>;
}

/** To a process: what it is to do. The next task comes when this one has ended. */
export interface TaskMessage {
  readonly task: unknown;
}

/** From a process, of its task: how far it has come, and in the end one of the others. */
export type TaskNews =
  | { readonly progress: unknown }
  | { readonly result: unknown }
  | { readonly failure: { readonly code: ErrorCode; readonly message: string } };

/**
 * Waits for the settings that the supervisor will send. A signal that ends processes ends this one meanwhile.
 * @throws ServingError draining when the supervisor is gone, or this process has none.
 */
export function settingsFromSupervisor(): Promise<SettingsMessage['settings']> {
  return new Promise((resolve, reject) => {
    const gone = () => reject(new ServingError('draining', 'the supervisor of this process is gone'));
    if (!process.connected) return gone();
    process.once('disconnect', gone);
    process.once('message', (message) => {
      process.off('disconnect', gone);
      resolve((message as SettingsMessage).settings);
    });
  });
}

/**
 * Performs the tasks of the supervisor from now on. None comes to a process that has no supervisor.
 * @param perform returns what the supervisor is told; it must be plain data. Its errors reach the supervisor.
 * @returns resolves when no task runs.
 */
export function serveTasks(
  perform: (task: unknown, onProgress: (progress: unknown) => void) => Promise<unknown>,
): () => Promise<void> {
  let running: Promise<void> | undefined;
  // Whether the supervisor is there is seen as `disconnect`; a send that fails adds nothing to that.
  const say = (news: TaskNews) =>
    new Promise<void>((sent) => {
      if (process.connected) process.send?.(news, undefined, undefined, () => sent());
      else sent();
    });
  process.on('message', (message) => {
    running = perform((message as TaskMessage).task, (progress) => void say({ progress })).then(
      (result) => say({ result }),
      (error: unknown) => {
        const { code, message: text } = ServingError.from(error);
        return say({ failure: { code, message: text } });
      },
    );
  });
  return async () => running;
}
