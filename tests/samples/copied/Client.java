    public static void main(String[] arguments) throws Exception {
        Client client = new Client("127.0.0.1", PORT, 20000);
        try {
            client.ask(List.of("WHO", "WHERE"), (request, reply) -> {
                throw new IllegalStateException("enough");
            });
        } catch (IllegalStateException error) {
            client.ask(List.of("PING"), (request, reply) -> System.out.println(reply.text()));
        }
        client.close();
    }
}
