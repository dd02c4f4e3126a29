/** A gateway that completes as a test wants, counts events and takes uploads of repositories. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { onTestFinished } from 'vitest';
import { json } from './fake-http.ts';

/** A body of POST /v1/completions. */
export interface AskedFor {
  readonly prompt: string;
  readonly suffix?: string;
  readonly stop_at?: string;
  readonly stop?: readonly string[];
  readonly language?: string;
  readonly session?: string;
  readonly max_tokens: number;
  readonly rag?: { repo: string; mode: string; path: string; files?: { path: string; text: string }[] };
}

type Complete = (asked: AskedFor, response: ServerResponse, request: IncomingMessage) => void | Promise<void>;

export class FakeCompletions {
  /** Bodies of completions that came, in their order. */
  readonly asked: AskedFor[] = [];
  /** `type completion_id` of events that came. */
  readonly events: string[] = [];
  /** Names of repositories that were uploaded. */
  readonly indexed: string[] = [];
  /** Authorization headers that came. */
  readonly keys = new Set<string | undefined>();
  /** Uploads that are hung up on, before others are taken. */
  uploadsToLose = 0;
  readonly url: string;
  readonly #server: Server;
  #complete: Complete;

  private constructor(server: Server, complete: Complete) {
    this.#server = server;
    this.#complete = complete;
    const { port } = server.address() as AddressInfo;
    this.url = `http://127.0.0.1:${port}`;
    server.on('request', (request, response) => void this.#answer(request, response));
  }

  /** Starts one, which ends with the test. @param port 0 for any. */
  static async start(complete: Complete, port = 0): Promise<FakeCompletions> {
    const server = createServer().listen(port, '127.0.0.1');
    await once(server, 'listening');
    const fake = new FakeCompletions(server, complete);
    onTestFinished(() => fake.stop());
    return fake;
  }

  answerWith(complete: Complete): void {
    this.#complete = complete;
  }

  async stop(): Promise<void> {
    if (!this.#server.listening) return;
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.method === 'PUT' && this.uploadsToLose-- > 0) return void request.destroy();
    const body = await buffer(request).catch(() => undefined);
    if (body === undefined) return; // the client hung up
    this.keys.add(request.headers.authorization);
    const { method, url = '' } = request;
    if (method === 'POST' && url === '/v1/completions') {
      const asked = JSON.parse(body.toString()) as AskedFor;
      this.asked.push(asked);
      return this.#complete(asked, response, request);
    }
    if (method === 'POST' && url === '/v1/events') {
      const { type, completion_id, choice_index } = JSON.parse(body.toString());
      if (choice_index === 0) this.events.push(`${type} ${completion_id}`);
      return json(response, {});
    }
    if (method === 'GET' && url.startsWith('/v1/repos/')) return json(response, coded('repo_not_found'), 404);
    if (method === 'PUT' && url.startsWith('/v1/repos/')) {
      this.indexed.push(url.slice('/v1/repos/'.length));
      return indexReport(response);
    }
    return json(response, coded('not_found'), 404);
  }
}

export const coded = (code: string, message = 'as the test wants it') => ({ error: { code, message } });

/** A whole completion. */
export const completed = (response: ServerResponse, id: string, text: string, rag?: object) =>
  json(response, { id, choices: [{ index: 0, text, finish_reason: 'stop' }], ...(rag && { rag }) });

function indexReport(response: ServerResponse): void {
  const event = (value: object) => `data: ${JSON.stringify(value)}\n\n`;
  const progress = { object: 'repo.progress', files: 2, files_read: 1, chunks: 3, embedded: 1 };
  const report = { object: 'repo.index', version: 'v1', files: 2, chunks: 5, embedded: 5, skipped: {}, seconds: 1 };
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  response.end(`${event(progress)}${event(report)}data: [DONE]\n\n`);
}
