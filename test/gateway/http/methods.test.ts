import { expect, test } from 'vitest';
import { fakeGateway } from '../../support/fake-gateway.ts';

test.each([
  ['GET', '/v1/completions', 'POST'],
  ['DELETE', '/v1/models/tiny', 'GET'],
  ['POST', '/livez', 'GET'],
  ['PATCH', '/v1/repos/acme/shop', 'GET, PUT, DELETE'],
  ['PUT', '/v1/repos', 'GET'],
] as const)('%s %s is refused, and the answer names the methods that the route takes', async (method, url, allowed) => {
  const { app } = await fakeGateway({ token: () => 70 });
  const answer = await app.inject({ method, url });
  expect(answer.statusCode).toBe(405);
  expect(answer.headers.allow).toBe(allowed);
  expect(answer.json().error).toMatchObject({ code: 'method_not_allowed', message: expect.stringContaining(allowed) });
});
