// What the parts of the shop share. `changed` is called when the lists must be made anew.

export const state = { user: "", placement: "", about: null, filter: null, positives: 0, shown: 0 };

export const shop = { changed: async () => 0 };

export const query = (values) => {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) if (value !== null && value !== undefined) parameters.set(name, value);
  return parameters.toString();
};
