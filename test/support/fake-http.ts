/** A fake gateway that answers as a test wants, and its answers. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { onTestFinished } from 'vitest';

type Answer = (body: unknown, request: IncomingMessage, response: ServerResponse) => void | Promise<void>;

/** Starts a gateway, which ends with the test. @returns its URL. */
export async function gateway(answer: Answer): Promise<string> {
  const server = createServer(async (request, response) => {
    await answer(JSON.parse(await text(request)), request, response);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

export const json = (response: ServerResponse, body: object, status = 200) =>
  void response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));

const refusal = (code: string) => ({ error: { code, message: 'as the test wants it' } });
/** Answers with an error. */
export const refuse = (response: ServerResponse, code: string) => json(response, refusal(code), 409);

/** Sends a progress event at once, and the last event when the outcome is known. */
export async function progress(response: ServerResponse, outcome: Promise<object | string>): Promise<void> {
  response.writeHead(200, { 'content-type': 'text/event-stream' }).write(event({ object: 'repo.progress' }));
  const last = await outcome;
  response.end(`${event(typeof last === 'string' ? refusal(last) : last)}data: [DONE]\n\n`);
}

const event = (value: object) => `data: ${JSON.stringify(value)}\n\n`;

/** Streams a completion with these token ids. */
export function events(response: ServerResponse, tokenIds: readonly number[], rag: object = {}): void {
  const usage = { prompt_tokens: 1, completion_tokens: tokenIds.length };
  const chunks = [{ choices: [{ text: '', finish_reason: null, token_ids: tokenIds }] }, { choices: [], usage, rag }];
  response.writeHead(200, { 'content-type': 'text/event-stream' }).end(`${chunks.map(event).join('')}data: [DONE]\n\n`);
}
